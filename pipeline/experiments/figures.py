"""The report's pictures, each as text that goes into a page: charts as SVG, images as JPEG, outlines as SVG paths.

In: score tables, histories, images and label maps. Out: strings of markup, the same for the same input. Lines and
letters of the charts take the page's colour, so they are read on a light page and on a dark one.
"""

import base64
import io
import re
from collections.abc import Mapping
from typing import Any

import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.errors import InputError

# Okabe & Ito's colours (https://jfly.uni-koeln.de/color/), told apart with any colour vision; one for each fold.
_LINES = ("-", "--", ":", "-.")  # of a member's lines, in the colours of its folds
FOLD_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#0072B2")

# Longest side of an embedded image: enough for a nucleus of 8 px in the largest common size, 1388 px.
PICTURE_PX = 800

# No visible artefacts at twice the size, and a quarter of a PNG's bytes.
_JPEG_QUALITY = 90

# Stands for the page's text colour until the SVG is written; no chart uses it otherwise.
_INK = "#010203"

_STYLE: Any = {
    "svg.fonttype": "none",  # letters stay letters: they can be searched and copied
    "svg.hashsalt": "report",  # else the ids in the SVG are random
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
} | {f"{part}color": _INK for part in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")}


def plot_thresholds(scores: pd.DataFrame) -> str:
    """Return an SVG of mean AP against the IoU threshold: a line for each fold, and all images as a thick one."""
    columns = list_thresholds(scores)
    if not columns:
        raise InputError("the scores have no columns ap50 .. ap95; run `dvc repro evaluate` to write them")
    iou = [int(column[2:]) / 100 for column in columns]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for fold, table in scores.groupby("fold"):
            axes.plot(iou, table[columns].mean(), color=_fold_colour(fold), lw=1.3, label=f"fold {fold}")
        axes.plot(iou, scores[columns].mean(), color=_INK, lw=2.6, label="all images")
        axes.set(xlabel="IoU threshold", ylabel="mean AP", xticks=iou, ylim=(0, 1))
        axes.legend()
        return _to_svg(figure, "thresholds")


def plot_learning_curves(histories: Mapping[str, pd.DataFrame]) -> str:
    """Return an SVG with the training loss of every fold, and the held-out score where it was looked at.

    Args:
        histories: by fold, or member and fold; columns epoch and loss, and val_map, which may be missing or empty in
            places.
    """
    looked = {fold: table.dropna(subset="val_map") for fold, table in histories.items() if "val_map" in table}
    looked = {fold: table for fold, table in looked.items() if len(table)}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 3.4) if looked else (6.4, 3.4), layout="constrained")
        panels = figure.subplots(1, 2 if looked else 1, squeeze=False)[0]
        _plot_folds(panels[0], histories, "loss", "training loss")
        if looked:
            _plot_folds(panels[1], looked, "val_map", "mAP on held-out images")
            panels[1].set_ylim(0, 1)
        panels[0].legend()
        return _to_svg(figure, "curves")


def _plot_folds(axes: Axes, tables: Mapping[str, pd.DataFrame], column: str, title: str) -> None:
    members = list(dict.fromkeys(name.rpartition("-")[0] for name in tables))
    for name, table in tables.items():
        member, _, fold = name.rpartition("-")
        # A dot where there is one point only: a line of one point cannot be seen.
        marker, style = "o" if len(table) < 3 else None, _LINES[members.index(member) % len(_LINES)]
        colour, label = _fold_colour(int(fold)), f"fold {name}"
        axes.plot(table["epoch"], table[column], color=colour, ls=style, lw=1.3, marker=marker, label=label)
    axes.set(xlabel="epoch", ylabel=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def list_thresholds(scores: pd.DataFrame) -> list[str]:
    """Return the columns ap50 .. ap95 of a score table, in its order."""
    return [column for column in scores.columns if re.fullmatch(r"ap\d\d", column)]


def _fold_colour(fold: int) -> str:
    return FOLD_COLOURS[fold % len(FOLD_COLOURS)]


def _to_svg(figure: Figure, name: str) -> str:
    """Return the figure as an `<svg>` element whose ids begin with `name`, so that two fit into one page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "system-ui, sans-serif", text)
    return text.replace(_INK, "currentColor").strip()


def encode_image(image: NDArray[np.uint8]) -> str:
    """Return the image, reduced to `PICTURE_PX` on its longer side, as a `data:` URI.

    Args:
        image: (H, W, 3) uint8, RGB.
    """
    shrink = PICTURE_PX / max(image.shape[:2])
    if shrink < 1:
        size = [max(round(side * shrink), 1) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    bgr = np.ascontiguousarray(image[..., ::-1])
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode('ascii')}"


def trace_outlines(label_map: NDArray[np.integer]) -> str:
    """Return the outer outlines of all nuclei as the `d` of an SVG path, in (x, y) pixels, centres at whole numbers.

    A path stays sharp at every size and can be switched off in the page, which pixels drawn into the image cannot.

    Args:
        label_map: (H, W), 0 background, 1..N, gaps allowed.
    """
    pieces = []
    for label, box in enumerate(find_objects(label_map.astype(np.int64)), start=1):
        if box is None:
            continue
        mask = (label_map[box] == label).astype(np.uint8)
        corner = (box[1].start, box[0].start)
        for contour in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=corner)[0]:
            points = " ".join(f"{x} {y}" for x, y in contour[:, 0].tolist())
            pieces.append(f"M{points}z")
    return "".join(pieces)
