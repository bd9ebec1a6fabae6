"""From the network's probabilities to nuclei, the inverse of `targets`: a seeded watershed.

In: foreground, boundary and distance of one image. Out: its label map. The steps are apart from one another, so that
the search for the best parameters repeats only those that a parameter changes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.nuclei.watershed import flood

_FOREGROUND, BOUNDARY, _DISTANCE = 0, 1, 2  # the channels, as `encode_targets` writes them

# About 60 bytes each while they are decoded: half a gigabyte.
STRIP_PX = 8_000_000


@dataclass(frozen=True)
class Decoding:
    """What turns probabilities into nuclei."""

    seed_threshold: float  # of foreground * (1 - boundary_weight * boundary); components above it are seeds
    boundary_weight: float  # how much the boundary takes from the foreground where seeds are sought
    mask_threshold: float  # of the foreground; nuclei grow from their seeds as far as it is above
    min_area_px: int  # smaller nuclei are dropped


def decode_instances(probabilities: NDArray[Any], decoding: Decoding, strip_px: int = STRIP_PX) -> NDArray[np.int32]:
    """Find the nuclei of one image.

    A large image is decoded strip by strip, so that the memory beyond input and result does not grow with it.

    Args:
        probabilities: (H, W, 3), foreground, boundary and distance; uint8 (value / 255) or floats in [0, 1].
        decoding: the parameters.
        strip_px: how many pixels of a larger image are decoded at once; more where components are taller.

    Returns:
        (H, W) int32 label map, 0 background, ids 1..N without gaps.

    Raises:
        InputError: the array has another shape or dtype.
    """
    height, width = (*probabilities.shape, 0, 0)[:2]
    if probabilities.ndim != 3 or height * width <= strip_px:
        return decode_scaled(scale_probabilities(probabilities), decoding)
    rows = max(1, strip_px // width)
    strips = (probabilities[top : top + rows] for top in range(0, height, rows))
    return decode_strips(strips, (height, width), decoding, strip_px)


def decode_strips(
    strips: Iterable[NDArray[Any]], shape: tuple[int, int], decoding: Decoding, strip_px: int = STRIP_PX
) -> NDArray[np.int32]:
    """Find the nuclei of one image whose probabilities come in strips, as `decode_instances` does of the whole.

    The nuclei are those of the whole, and the ids do not depend on where the strips begin: a component of the mask that
    the end of what is decoded at once cuts is left to the next time, which begins above it. Only the rows from there on
    are held.

    Args:
        strips: (rows, W, 3) each, from the top on, as `decode_instances` takes them; read as they are needed.
        shape: H and W of the image.
        decoding: the parameters.
        strip_px: how many pixels are decoded at once; more where components are taller.

    Raises:
        InputError: a strip has another shape or dtype, or they are not H rows together.
    """
    height, width = shape
    label_map = np.zeros(shape, dtype=np.int32)
    rows = max(1, strip_px // max(1, width))
    source = iter(strips)
    held: list[NDArray[Any]] = []  # from row `top` on
    count, top, bottom = 0, 0, 0
    is_done = np.zeros((0, width), dtype=bool)  # from `top` on, the pixels whose component was decoded whole before
    while bottom < height:
        # Twice what came again: also of an image that is all one component, each row comes a few times only.
        bottom = min(height, bottom + max(rows, bottom - top))
        held = [_take_rows(held, source, bottom - top, width)]
        labels, found, is_done = _decode_closed(held[0][: bottom - top], decoding, is_done, bottom == height)
        labels[labels > 0] += count
        label_map[top:bottom] += labels
        count += found
        top = bottom - len(is_done)
        held = [held[0][len(labels) - len(is_done) :]]
        del labels  # while the next strip is made, the result and what is held are all there is
    return label_map


def _take_rows(held: list[NDArray[Any]], source: Iterator[NDArray[Any]], rows: int, width: int) -> NDArray[Any]:
    """Return what is `held` with as many strips of `source` below it as make at least `rows` rows."""
    parts, have = [part for part in held if len(part)], sum(map(len, held))
    while have < rows:
        strip = next(source, None)
        if strip is None or strip.ndim != 3 or strip.shape[1] != width:
            got = "end" if strip is None else f"bring {strip.shape}"
            raise InputError(f"strips of probabilities {got}, {rows - have} rows too early; give (rows, {width}, 3)")
        parts.append(strip)
        have += len(strip)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _decode_closed(
    probabilities: NDArray[Any], decoding: Decoding, is_done: NDArray[np.bool_], is_last: bool
) -> tuple[NDArray[np.int32], int, NDArray[np.bool_]]:
    """Decode some rows of an image (h, W, 3), and keep the nuclei of components that end in them and are new.

    Args:
        probabilities: as `decode_instances` takes them.
        decoding: the parameters.
        is_done: (d, W), the pixels of the first rows whose components were decoded before.
        is_last: whether the image ends here, and with it every component.

    Returns:
        (h, W) label map of the nuclei that are kept, ids 1..N; N; and `is_done` for the next time, which begins with
        the first row of the components that are open: with its last so many rows.
    """
    scaled = scale_probabilities(probabilities)
    labels = decode_scaled(scaled, decoding)
    components = label_components(scaled[_FOREGROUND] > decoding.mask_threshold)
    is_open = np.zeros(components.max(initial=0) + 1, dtype=bool)
    if not is_last:
        is_open[components[-1]] = True
    is_new = ~is_open
    is_new[components[: len(is_done)][is_done]] = False
    is_open[0] = is_new[0] = False
    # A nucleus is of the component of its first pixel: those of its holes come later.
    pixels = np.flatnonzero(labels)[::-1]
    origin = np.zeros(labels.max(initial=0) + 1, dtype=np.int32)
    origin[labels.ravel()[pixels]] = components.ravel()[pixels]
    is_kept = is_new[origin]
    new_ids = np.where(is_kept, np.cumsum(is_kept), 0).astype(np.int32)
    is_carried = is_open[components].any(axis=1)
    first = int(is_carried.argmax()) if is_carried.any() else len(components)
    carried = components[first:]
    return new_ids[labels], int(is_kept.sum()), (carried > 0) & ~is_open[carried]


def decode_scaled(scaled: NDArray[np.float32], decoding: Decoding) -> NDArray[np.int32]:
    """Return the label map (H, W) int32, ids 1..N, of `scaled` (3, H, W) in [0, 1], at once as a whole."""
    core = find_cores(scaled, decoding.boundary_weight)
    return drop_small(grow_nuclei(scaled, core, decoding), decoding.min_area_px)


def average_zooms(probabilities: NDArray[Any]) -> NDArray[Any]:
    """Return the mean (H, W, 3) of the zooms of `probabilities` (S, H, W, 3); of bytes, rounded to bytes.

    Raises:
        InputError: the array is not of that shape, or has no zoom.
    """
    if probabilities.ndim != 4 or len(probabilities) == 0:
        raise InputError(f"probabilities are {probabilities.shape}; give (zooms, H, W, 3) with at least one zoom")
    if len(probabilities) == 1:
        return probabilities[0]
    is_bytes = probabilities.dtype == np.uint8
    average = np.empty(probabilities.shape[1:], np.uint8 if is_bytes else np.float32)
    # In strips: between bytes and bytes, a large image would be four times as large.
    rows = max(1, STRIP_PX // max(1, probabilities.shape[2]))
    for top in range(0, len(average), rows):
        strip = probabilities[:, top : top + rows].mean(axis=0, dtype=np.float32)
        average[top : top + rows] = strip.round() if is_bytes else strip
    return average


def scale_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """Return the three channels as (3, H, W) float32 in [0, 1].

    Raises:
        InputError: the array is not (H, W, 3), or neither uint8 nor floats.
    """
    is_bytes = probabilities.dtype == np.uint8
    if probabilities.ndim != 3 or probabilities.shape[2] != 3 or not (is_bytes or probabilities.dtype.kind == "f"):
        raise InputError(
            f"probabilities are {probabilities.shape} {probabilities.dtype}; give (H, W, 3) of uint8 or floats"
        )
    if not is_bytes or probabilities.size == 0:
        return np.moveaxis(probabilities, 2, 0).astype(np.float32, order="C")
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    scaled = np.empty((3, *probabilities.shape[:2]), np.float32)
    for channel, plane in zip(cv2.split(probabilities), scaled, strict=True):
        cv2.LUT(channel, levels, dst=plane)
    return scaled


def find_cores(scaled: NDArray[np.float32], boundary_weight: float) -> NDArray[np.float32]:
    """Return foreground * (1 - boundary_weight * boundary), (H, W) in [0, 1]: high inside nuclei, low between them.

    Source: the winners of the competition sought seeds in mask * (1 - border),
        https://www.kaggle.com/competitions/data-science-bowl-2018/discussion/54741
    """
    return scaled[_FOREGROUND] * (1 - boundary_weight * scaled[BOUNDARY])


def grow_nuclei(scaled: NDArray[np.float32], core: NDArray[np.float32], decoding: Decoding) -> NDArray[np.int32]:
    """Grow seeds into the mask, deepest pixels first, and fill the holes; small nuclei stay.

    A component of the mask without a seed is one nucleus where its highest foreground is above the seed threshold:
    there the boundary took the seed, as in thin or crowded nuclei. Elsewhere the signal is faint, and it is dropped.

    Args:
        scaled: (3, H, W) in [0, 1].
        core: (H, W) of `find_cores`.
        decoding: the parameters; `min_area_px` is not used.

    Returns:
        (H, W) int32 label map, 0 background; the ids may have gaps.
    """
    foreground = scaled[_FOREGROUND]
    mask = foreground > decoding.mask_threshold
    seeds = label_components(mask & (core > decoding.seed_threshold))
    components = label_components(mask)
    # From here on only pixels of the mask are touched: often a tenth of the image.
    pixels = np.flatnonzero(mask)
    component, seed = components.ravel()[pixels], seeds.ravel()[pixels]
    is_seeded = np.zeros(components.max(initial=0) + 1, dtype=bool)
    is_seeded[component[seed > 0]] = True
    rescued = ~is_seeded[component] & (foreground.ravel()[pixels] > decoding.seed_threshold)
    seed[rescued] = seeds.max(initial=0) + component[rescued]
    lowest, highest = _find_range(component[seed > 0], seed[seed > 0], len(is_seeded))
    # One seed takes its whole component; only components of several need the watershed, and they are few.
    labels = np.where(lowest == highest, highest, 0)[component]
    label_map = np.zeros(mask.shape, dtype=np.int32)
    label_map.ravel()[pixels] = labels
    is_shared = (lowest < highest)[component]
    rows, columns = (
        _find_range(component[is_shared], along.astype(np.int32), len(is_seeded))
        for along in np.divmod(pixels[is_shared], mask.shape[1])
    )
    for shared in np.flatnonzero(lowest < highest):
        # Each in its own box: what floods first among equals does not depend on what else the image holds.
        box = tuple(slice(first[shared], last[shared] + 1) for first, last in (rows, columns))
        within = components[box] == shared
        label_map[box] += flood(scaled[_DISTANCE][box], seeds[box] * within, within)
    return fill_holes(label_map)


def label_components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Label the 4-connected components of `mask` from 1."""
    return cv2.connectedComponents(mask.view(np.uint8), connectivity=4)[1].astype(np.int32, copy=False)


def _find_range(
    group: NDArray[np.integer], value: NDArray[np.int32], n_groups: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the lowest and the highest value of each group; of an empty one lowest > highest."""
    lowest = np.full(n_groups, np.iinfo(np.int32).max, dtype=np.int32)
    highest = np.zeros(n_groups, dtype=np.int32)
    np.minimum.at(lowest, group, value)
    np.maximum.at(highest, group, value)
    return lowest, highest


def fill_holes(label_map: NDArray[np.int32]) -> NDArray[np.int32]:
    """Give background that one single nucleus encloses to that nucleus.

    Background that reaches the edge of the image, or that lies between several nuclei, stays.
    """
    _, background = cv2.connectedComponents((label_map == 0).view(np.uint8), connectivity=8)
    is_hole = np.ones(background.max(initial=0) + 1, dtype=bool)
    is_hole[0] = False
    for edge in (background[0], background[-1], background[:, 0], background[:, -1]):
        is_hole[edge] = False
    if not is_hole.any():
        return label_map
    pixels = np.flatnonzero(is_hole[background])
    # No hole touches the edge, so all four neighbours of its pixels exist.
    width = label_map.shape[1]
    around = label_map.ravel()[pixels[:, None] + np.array([-1, 1, -width, width])]
    holes = np.broadcast_to(background.ravel()[pixels, None], around.shape)
    lowest, highest = _find_range(holes[around > 0], around[around > 0], len(is_hole))
    owner = np.where(lowest == highest, highest, 0)
    filled = label_map.copy()
    filled.ravel()[pixels] = owner[background.ravel()[pixels]]
    return filled


def drop_small(label_map: NDArray[np.int32], min_area_px: int) -> NDArray[np.int32]:
    """Drop nuclei below `min_area_px` and renumber the others 1..N in the order of their ids."""
    kept, flat = np.zeros(label_map.shape, np.int32), label_map.ravel()
    pixels = np.flatnonzero(flat != 0)  # often a tenth of the image
    ids = flat.take(pixels)
    is_kept = np.bincount(ids, minlength=1) >= max(1, min_area_px)
    new_ids = np.where(is_kept, np.cumsum(is_kept), 0).astype(np.int32)
    kept.ravel()[pixels] = new_ids.take(ids)
    return kept
