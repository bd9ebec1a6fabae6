"""Mask files to one label map: what belongs to a nucleus, and every fault of annotation on the way.

In: decoded mask files. Out: a label map `(H, W)` uint16, 0 background, and the faults that were found.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

_MAX_NUCLEI = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Mask:
    """One nucleus, cut to its bounding box.

    Attributes:
        mask_id: name of the mask, for messages.
        top, left: position of the box in the image, px.
        pixels: (h, w) bool.
    """

    mask_id: str
    top: int
    left: int
    pixels: NDArray[np.bool_]


@dataclass(frozen=True)
class Problem:
    """A fault of annotation, and what was done about it. `value` is in pixels."""

    mask_id: str
    problem: str
    value: int
    handling: str


def crop_mask(array: NDArray[Any], mask_id: str, top: int = 0) -> Mask:
    """Cut a decoded mask file (H, W[, C]) to the bounding box of its nucleus: the pixels with any colour above 0.

    A mask without such a pixel gives a box of size 0. `top` is the row of the mask that the array begins with.
    """
    if array.ndim == 3:
        colours = array[..., :-1] if array.shape[2] in (2, 4) else array
        array = colours.max(axis=2)
    if array.dtype != np.uint8:
        array = (array > 0).astype(np.uint8)
    left, first, width, height = cv2.boundingRect(array) if array.size else (0, 0, 0, 0)
    return Mask(mask_id, top + first, left, array[first : first + height, left : left + width] > 0)


def clean_mask(mask: Mask, min_fragment_px: int) -> tuple[Mask, list[Problem]]:
    """Fill the holes of a nucleus and drop its specks.

    A hole is background that the nucleus encloses (4-connected). A speck is a detached fragment (8-connected) of fewer
    than `min_fragment_px` pixels. Larger fragments stay part of the nucleus. All are reported.
    """
    padded = cv2.copyMakeBorder(mask.pixels.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(padded, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    large = areas >= min_fragment_px
    fragments = np.sort(areas[large])[:-1]  # all but the nucleus itself, the largest
    problems = [Problem(mask.mask_id, "speck", int(area), "dropped") for area in np.sort(areas[~large])]
    problems += [Problem(mask.mask_id, "fragment", int(area), "kept in the nucleus") for area in fragments]
    inside = padded.view(bool) if large.all() else np.append(False, large)[parts]
    outside_count, outside = cv2.connectedComponents((~inside).view(np.uint8), connectivity=4)
    if outside_count > 2:
        hole = (outside != outside[0, 0]) & ~inside
        problems.append(Problem(mask.mask_id, "hole", int(hole.sum()), "filled"))
        inside = inside | hole
    return Mask(mask.mask_id, mask.top, mask.left, inside[1:-1, 1:-1]), problems


def merge_masks(
    masks: Iterable[Mask], shape: tuple[int, int], min_fragment_px: int
) -> tuple[NDArray[np.uint16], list[Problem]]:
    """Merge the masks of an image into one label map (H, W) uint16: 0 background, 1..N without gaps.

    Masks are cleaned first. A pixel that several masks claim goes to the smallest of them, which would lose the largest
    share of itself (ties to the later name). A mask that is empty, or that others cover whole, gets no id.

    Raises:
        InputError: there are more nuclei than uint16 counts.
    """
    label_map = np.zeros(shape, np.uint16)
    problems: list[Problem] = []
    cleaned: list[Mask] = []
    for mask in masks:
        if not mask.pixels.any():
            problems.append(Problem(mask.mask_id, "empty", 0, "dropped"))
            continue
        clean, found = clean_mask(mask, min_fragment_px)
        problems += found
        if clean.pixels.any():
            cleaned.append(clean)
    if len(cleaned) > _MAX_NUCLEI:
        raise InputError(
            f"{len(cleaned)} nuclei in the image of mask {cleaned[0].mask_id}; a label map holds {_MAX_NUCLEI}; "
            "split the image"
        )
    order = sorted(range(len(cleaned)), key=lambda i: -np.count_nonzero(cleaned[i].pixels))
    for index in order:
        mask = cleaned[index]
        height, width = mask.pixels.shape
        box = label_map[mask.top : mask.top + height, mask.left : mask.left + width]
        overlap = int(np.count_nonzero(box[mask.pixels]))
        if overlap:
            problems.append(Problem(mask.mask_id, "overlap", overlap, "given to this mask, the smaller one"))
        box[mask.pixels] = index + 1
    return _close_gaps(label_map, cleaned, problems), problems


def _close_gaps(label_map: NDArray[np.uint16], masks: list[Mask], problems: list[Problem]) -> NDArray[np.uint16]:
    """Number the ids that are left 1..N in their order, and report the masks that others cover whole."""
    present = np.bincount(label_map.ravel(), minlength=len(masks) + 1) > 0
    present[0] = False
    for index in np.flatnonzero(~present[1:]):
        problems.append(Problem(masks[index].mask_id, "covered", int(masks[index].pixels.sum()), "dropped"))
    return np.where(present, np.cumsum(present), 0).astype(np.uint16)[label_map]
