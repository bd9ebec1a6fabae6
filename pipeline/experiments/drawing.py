"""A network drawn as the U that gave it its name, as SVG text.

In: the stages of `describe_network`. Out: an SVG: the encoder goes down on the left, the decoder up on the right, and
each skip crosses between equal resolutions. A box is as wide as the logarithm of its channels.
"""

import math
from collections.abc import Sequence
from html import escape

from pipeline.unet.describe import Stage

_ROW_PX, _TOP_PX, _BOX_PX, _WIDTH_PX = 74, 46, 34, 900
_UNIT_PX = 15  # of width, for each doubling of the channels
_LEFT_PX, _RIGHT_PX = 190, 700  # middles of the two arms
_COLOURS = {
    "encoder": "#4c78a8",
    "decoder": "#59a14f",
    "upsampling": "#f28e2b",
    "head": "#b07aa1",
}
_DOWN, _SKIP = "#888888", "#e15759"
_STYLE = "font-family:sans-serif;font-size:12px"


def draw_network(stages: Sequence[Stage], title: str) -> str:
    """Return the drawing of a network as SVG.

    Args:
        stages: as `describe_network` returns them.
        title: a line of text above.
    """
    encoder = [stage for stage in stages if stage.name.startswith("encoder")]
    decoder = [stage for stage in stages if stage.name.startswith("decoder")]
    *levels, bottom = encoder
    row_of = _find_rows(levels, decoder, bottom)
    upsampling = {stage.name.split()[-1]: stage for stage in stages if stage.name.startswith("upsampling")}
    parts = [f'<text x="20" y="24" style="{_STYLE};font-weight:bold">{escape(title)}</text>']
    parts += _draw_levels(levels, row_of)
    middle = (_LEFT_PX + _RIGHT_PX) / 2
    floor, half = _y(row_of[bottom.name]) + _BOX_PX / 2, _wide(bottom) / 2
    parts.append(_box(bottom, middle, row_of[bottom.name]))
    parts.append(_arrow([(_LEFT_PX, floor - _ROW_PX + _BOX_PX / 2), (_LEFT_PX, floor), (middle - half, floor)], _DOWN))
    for number, stage in enumerate(decoder, start=1):
        row = row_of[stage.name]
        below = upsampling.get(str(number))
        note = f"upsampling: {below.gives[0]} channels" if below else "upsampling"
        begin = [(middle + half, floor), (_RIGHT_PX, floor)] if number == 1 else [(_RIGHT_PX, _y(row + 1))]
        parts.append(_box(stage, _RIGHT_PX, row))
        parts.append(_arrow([*begin, (_RIGHT_PX, _y(row) + _BOX_PX)], _COLOURS["upsampling"]))
        parts.append(_text(_RIGHT_PX + 8, _y(row + 1) - 14, note, _COLOURS["upsampling"]))
        for partner in (one for one in levels if row_of[one.name] == row):
            ends = [(_LEFT_PX + _wide(partner) / 2, _y(row) + _BOX_PX / 2)]
            ends.append((_RIGHT_PX - _wide(stage) / 2, ends[0][1]))
            parts.append(_arrow(ends, _SKIP))
            parts.append(_text(middle - 50, ends[0][1] - 5, f"skip: {partner.gives[0]} channels", _SKIP))
    head = next((stage for stage in stages if stage.name == "head"), None)
    if head is not None:
        parts.append(_text(_RIGHT_PX - 60, _y(min(row_of.values())) - 8, f"head: {_label(head)}", _COLOURS["head"]))
    height = _y(row_of[bottom.name] + 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH_PX} {height}" width="{_WIDTH_PX}" '
        f'height="{height}">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _find_rows(levels: Sequence[Stage], decoder: Sequence[Stage], bottom: Stage) -> dict[str, int]:
    """Return the row of each stage's name, from the top: stages of one resolution share one."""
    row_of = {stage.name: row for row, stage in enumerate(levels)}
    row_of |= {stage.name: len(levels) - 1 - number for number, stage in enumerate(decoder)}
    # A library's decoder ends at the tile's own resolution, where its encoder, halving at once, has no stage.
    lift = max(0, -min(row_of.values(), default=0))
    row_of = {name: row + lift for name, row in row_of.items()}
    return row_of | {bottom.name: len(levels) + lift}


def _draw_levels(levels: Sequence[Stage], row_of: dict[str, int]) -> list[str]:
    """Return the left arm: a box for each stage, and arrows down."""
    parts = []
    for stage in levels:
        row = row_of[stage.name]
        parts.append(_box(stage, _LEFT_PX, row))
        if stage is not levels[-1]:
            parts.append(_arrow([(_LEFT_PX, _y(row) + _BOX_PX), (_LEFT_PX, _y(row + 1))], _DOWN))
    return parts


def _y(row: int) -> int:
    return _TOP_PX + 14 + row * _ROW_PX


def _wide(stage: Stage) -> float:
    return 40 + _UNIT_PX * math.log2(max(1, stage.gives[0]))  # some encoders skip a halving, with a map of no channels


def _label(stage: Stage) -> str:
    return " x ".join(str(length) for length in stage.gives)


def _box(stage: Stage, x: float, row: int) -> str:
    colour = _COLOURS[stage.name.split()[0]]
    wide, y = _wide(stage), _y(row)
    cost = f"{stage.parameters:,} parameters, {stage.macs / 1e6:.0f} M MACs"
    return (
        f'<g><title>{escape(stage.name)}: {cost}</title><rect x="{x - wide / 2:.1f}" y="{y}" width="{wide:.1f}" '
        f'height="{_BOX_PX}" rx="3" fill="{colour}"/>'
        f'<text x="{x}" y="{y + 14}" text-anchor="middle" fill="white" style="{_STYLE}">{escape(stage.name)}</text>'
        f'<text x="{x}" y="{y + 28}" text-anchor="middle" fill="white" style="{_STYLE}">{_label(stage)}</text></g>'
    )


def _text(x: float, y: float, text: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" style="{_STYLE}">{escape(text)}</text>'


def _arrow(points: Sequence[tuple[float, float]], colour: str) -> str:
    """Return a line through points (x, y) with a head at its end."""
    (x1, y1), (x2, y2) = points[-2:]
    angle = math.atan2(y2 - y1, x2 - x1)
    sides = [(x2 - 7 * math.cos(angle + turn), y2 - 7 * math.sin(angle + turn)) for turn in (0.4, -0.4)]
    line, head = (" ".join(f"{x:.1f},{y:.1f}" for x, y in part) for part in (points, [(x2, y2), *sides]))
    return f'<polyline points="{line}" stroke="{colour}" fill="none"/><polygon points="{head}" fill="{colour}"/>'
