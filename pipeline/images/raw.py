"""Image files to arrays: any PNG (or JPEG, TIFF through OpenCV) to uint8 RGB, and mask files to one label map.

In: the bytes of a file. Out: `(H, W, 3)` uint8 images, `(H, W)` uint16 label maps, and every fault of annotation found.

How an image becomes uint8 RGB:
- one channel is repeated three times; a palette is looked up; channels are kept as they are;
- 16 bits are stretched linearly, all channels alike, so that the 0.1th percentile becomes 0 and the 99.9th 255:
  microscopes rarely fill 16 bits, and a plain `>> 8` would turn such images black;
- an alpha channel that is constant is dropped; a real one is composited over black, as is usual for no signal.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_STRETCH_PERCENTILES = (0.1, 99.9)  # robust to a few hot or dead pixels
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


def decode_image(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    """Decode an image file to (H, W) or (H, W, C) uint8 or uint16, channels in the order R, G, B, alpha.

    The size in a PNG's header is checked before anything is decoded.

    Raises:
        InputError: the file is damaged, of no known format, empty, or larger than `max_pixels`.
    """
    if data.startswith(_PNG):
        _check_png(data, name, max_pixels)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error as error:
        raise InputError(f"{name}: does not decode ({error.err}); replace the file") from error
    if array is None or array.size == 0:
        raise InputError(f"{name}: does not decode as an image; replace the file")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise InputError(
            f"{name}: {array.shape[0]} x {array.shape[1]} px; more than max_pixels = {max_pixels}; make it smaller"
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{name}: values of type {array.dtype}; convert the image to 8 or 16 bits")
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return array


def _check_png(data: bytes, name: str, max_pixels: int) -> None:
    """Refuse a PNG that is cut short, empty, or absurdly large (section 11.2.2 of the PNG specification)."""
    if len(data) < 33 or data[12:16] != b"IHDR" or _PNG_END not in data:
        raise InputError(f"{name}: a PNG that is cut short ({len(data)} bytes); replace the file")
    width, height = struct.unpack(">II", data[16:24])
    if width == 0 or height == 0:
        raise InputError(f"{name}: a PNG of zero size ({height} x {width} px); replace the file")
    if width * height > max_pixels:
        raise InputError(
            f"{name}: its header says {height} x {width} px, more than max_pixels = {max_pixels}; "
            "raise data.max_pixels (for the command `predict`, predict.max_pixels) if the image is real"
        )


def to_rgb(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn a decoded image (H, W) or (H, W, 1..4), of any real type, into (H, W, 3) uint8 RGB by the module's rules."""
    if array.ndim == 2:
        array = array[..., None]
    alpha = array[..., -1] if array.shape[2] in (2, 4) else None
    if alpha is not None:
        # As most of the competition's images are: numpy copies three channels of four slowly.
        is_usual = array.dtype == np.uint8 and array.shape[2] == 4
        array = cv2.cvtColor(array, cv2.COLOR_RGBA2RGB) if is_usual else array[..., :-1]
    if array.dtype != np.uint8:
        low, high = np.percentile(array, _STRETCH_PERCENTILES)
        span = max(float(high - low), 1.0)
        array = np.clip((array - low) * (255.0 / span), 0, 255).round().astype(np.uint8)
    if alpha is not None and alpha.min() != alpha.max():
        opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1.0
        opacity = (alpha[..., None].astype(np.float32) / opaque).clip(0, 1)
        array = (array * opacity).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


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
