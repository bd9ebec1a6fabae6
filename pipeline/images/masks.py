"""Mask files to one label map: what belongs to a nucleus, and every fault of annotation on the way.

In: decoded mask files. Out: a label map `(H, W)` uint16, 0 background, and the faults that were found.

What a file holds is decided by its values. 0, which is black or transparent, is the background. The rest is
- a mask of one nucleus where it is one value;
- a mask of one nucleus too where only its edges are soft, from antialiasing or JPEG: each object reaches the full
  scale, values between a quarter and three quarters of it lie within 3 px of an edge and nowhere fill 3 x 3 px with one
  value, and fainter ones lie within 8 px of an object, the side of a JPEG's blocks. The nucleus is what has at least
  half of the full scale;
- else a label image, of a nucleus per value or colour: each is in one piece and, but for some that others hem in, has a
  pixel that touches no other (a tenth may fail), and none encloses another.
What is none of these is refused, and so is one in which black and white were exchanged: a nucleus that goes all along
the frame around a background, or along more than half of it and in most of the image, around a background in pieces.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.errors import InputError
from pipeline.images.mask_png import UsedRows

_MAX_NUCLEI = np.iinfo(np.uint16).max
_EDGE_PX, _BLOCK_PX = 3, 8
_CURE = "save a nucleus as 255 and all else as 0, or as a label image: an id for each nucleus and all else as 0"


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
    """Cut a decoded mask file (H, W[, C]) to the bounding box of its nucleus: the pixels that are not background.

    A mask without such a pixel gives a box of size 0. `top` is the row of the mask that the array begins with.
    """
    array = _number_colours(array)
    if array.dtype != np.uint8:
        array = (array > 0).astype(np.uint8)
    left, first, width, height = cv2.boundingRect(array) if array.size else (0, 0, 0, 0)
    return Mask(mask_id, top + first, left, array[first : first + height, left : left + width] > 0)


def split_mask_file(used: UsedRows, mask_id: str, where: str, min_fragment_px: int) -> list[Mask]:
    """Return the nuclei of a decoded mask file by the module's rules: one, or those of a label image.

    Args:
        used: the file.
        mask_id: its name; the nuclei of a label image are `<mask_id>.<id>`, where the id of a colour is its RRGGBB.
        where: the archive and the entry, for messages.
        min_fragment_px: as in `clean_mask`.

    Raises:
        InputError: the values are neither a mask's nor a label image's, or the mask is inverted.
    """
    values = _number_colours(used.rows)
    mask = crop_mask(values, mask_id, used.top)
    height, width = mask.pixels.shape
    box = values[mask.top - used.top :, mask.left :][:height, :width]
    if not box.size or ((box == box.max()) == mask.pixels).all():
        masks = [mask]
    else:
        frame = np.zeros(used.shape, values.dtype)
        frame[used.top : used.top + len(values)] = values
        nucleus = _find_soft_nucleus(frame)
        if nucleus is not None:
            masks = [crop_mask(nucleus, mask_id)]
        else:
            masks = _split_label_image(frame, mask_id, where, min_fragment_px)
    for mask in masks:
        if mask.pixels.shape == used.shape and _is_inverted(mask.pixels):
            raise InputError(
                f"{where}: nucleus along the frame, around {np.count_nonzero(~mask.pixels)} px of background, "
                f"as if black and white were exchanged; {_CURE}"
            )
    return masks


def _number_colours(array: NDArray[Any]) -> NDArray[Any]:
    """Return (H, W) of a mask file (H, W[, C]): greys as they are, colours as RRGGBB in int64, and 0 where transparent.

    Where all that can be seen has one colour, the alpha channel is the mask. A constant one says nothing.
    """
    if array.ndim == 2:
        return array
    colours, alpha = (array[..., :-1], array[..., -1]) if array.shape[2] in (2, 4) else (array, None)
    numbers: NDArray[Any] = colours[..., 0]
    if (colours != colours[..., :1]).any():
        numbers = np.zeros(array.shape[:2], np.int64)
        for channel in np.moveaxis(colours, -1, 0):
            numbers = numbers << 8 * array.itemsize | channel
    if alpha is None or alpha.min() == alpha.max():
        return numbers
    seen = numbers[alpha > 0]
    return alpha if seen.min() == seen.max() else np.where(alpha > 0, numbers, 0)


def _find_soft_nucleus(frame: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return the nucleus (H, W), 1 and 0, of a mask (H, W) with soft edges; None where the file is no such mask."""
    if frame.dtype == np.int64:
        return None  # colours
    full = np.iinfo(frame.dtype).max
    nucleus = (frame > full // 2).astype(np.uint8)
    count, objects = cv2.connectedComponents(nucleus, connectivity=8)
    if count == 1 or len(np.unique(objects[frame == full])) < count - 1:
        return None
    at_edge = cv2.morphologyEx(nucleus, cv2.MORPH_GRADIENT, _square(_EDGE_PX)) > 0
    is_between = (frame > full // 4) & (frame < full - full // 4)
    is_flat = (cv2.dilate(frame, _square(1)) == frame) & (cv2.erode(frame, _square(1)) == frame)
    is_graded = not (is_flat & (frame > full // 4) & (frame < full - full // 32)).any()
    if not is_graded:
        return None
    is_near = cv2.dilate(nucleus, _square(_BLOCK_PX)) > 0
    return None if (is_between & ~at_edge).any() or ((frame > 0) & ~is_near).any() else nucleus


def _split_label_image(frame: NDArray[Any], mask_id: str, where: str, min_fragment_px: int) -> list[Mask]:
    """Return the nuclei of a label image (H, W), in the order of their ids.

    Raises:
        InputError: it is none.
    """
    values, ranks = np.unique(frame, return_inverse=True)
    ranks, count = ranks.reshape(frame.shape).astype(np.int32), len(values) - 1
    ids = [f"{value:06x}" if frame.dtype == np.int64 else str(value) for value in values.tolist()]
    start = f"{where}: {len(ids)} values ({', '.join(ids[:3])}{' ..' * (len(ids) > 3)}), neither a mask's nor ids: "
    if values[0] != 0:
        raise InputError(f"{start}none is 0, the background; {_CURE}")
    plane = ranks.astype(np.float32)
    others = np.where(ranks == 0, np.float32(np.inf), plane)
    is_free = (cv2.dilate(plane, _square(1)) == plane) & (cv2.erode(others, _square(1)) == plane)
    free = np.unique(ranks[is_free])
    if len(free) < 0.9 * count:
        raise InputError(f"{start}they run into one another; {_CURE}")
    masks, pieces = [], 0
    for rank, box in enumerate(find_objects(ranks), 1):
        mask = Mask(f"{mask_id}.{ids[rank]}", box[0].start, box[1].start, ranks[box] == rank)
        clean, problems = clean_mask(mask, min_fragment_px)
        if ranks[box][clean.pixels & ~mask.pixels].any():
            raise InputError(f"{start}{ids[rank]} encloses another; {_CURE}")
        pieces += 1 + sum(problem.problem == "fragment" for problem in problems)
        masks.append(mask)
    if pieces > 1.1 * count:
        raise InputError(f"{start}they lie in {pieces} pieces; {_CURE}")
    return masks


def _is_inverted(pixels: NDArray[np.bool_]) -> bool:
    """Whether a nucleus (H, W) is rather the background of others, by how much of the frame and the image it takes."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if border.all():
        return not bool(pixels.all())
    count, _ = cv2.connectedComponents((~pixels).view(np.uint8), connectivity=8)
    return bool(border.mean() > 0.5 and pixels.mean() > 0.5 and count > 2)


def _square(radius: int) -> NDArray[np.uint8]:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


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
    is_disputed = False
    for index in order:
        mask = cleaned[index]
        height, width = mask.pixels.shape
        box = label_map[mask.top : mask.top + height, mask.left : mask.left + width]
        overlap = int(np.count_nonzero(box[mask.pixels]))
        if overlap:
            is_disputed = True
            problems.append(Problem(mask.mask_id, "overlap", overlap, "given to this mask, the smaller one"))
        box[mask.pixels] = index + 1
    # Where none overlaps, none is covered.
    return (_close_gaps(label_map, cleaned, problems) if is_disputed else label_map), problems


def _close_gaps(label_map: NDArray[np.uint16], masks: list[Mask], problems: list[Problem]) -> NDArray[np.uint16]:
    """Number the ids that are left 1..N in their order, and report the masks that others cover whole."""
    present = np.bincount(label_map.ravel(), minlength=len(masks) + 1) > 0
    present[0] = False
    for index in np.flatnonzero(~present[1:]):
        problems.append(Problem(masks[index].mask_id, "covered", int(masks[index].pixels.sum()), "dropped"))
    return np.where(present, np.cumsum(present), 0).astype(np.uint16)[label_map]
