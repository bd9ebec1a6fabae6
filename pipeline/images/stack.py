"""A stack of serial sections to slices with label maps, as the ISBI 2012 challenge served them.

In: a zip or a folder with `image/` and `label/`, whose files (PNG, JPEG, TIFF) have the same names; or two multi-page
TIFFs. In a label, white is the inside of a cell and black the membrane. Out: slices `(H, W, 3)` uint8 in the
order of the stack, and label maps `(H, W)` uint16 of the insides. The numbers in names are filled with zeros: ids sort
in the order of the stack.
"""

import re
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, shorten
from pipeline.images.archive import open_once
from pipeline.images.folders import list_folders
from pipeline.images.raw import to_rgb
from pipeline.images.source import PreparedImage, Source, describe_image
from pipeline.images.tiff import read_tiff
from pipeline.progress import track
from pipeline.tables import check_image_id

_TIFF_NAMES = (".tif", ".tiff")


def read_stack(source: Source) -> Iterator[PreparedImage]:
    """Yield the slices of a stack, a zip, a folder, or a multi-page TIFF with its labels beside it, in their order.

    Raises:
        InputError: a file is missing or damaged; a slice has no label, another size than it, or no two values.
    """
    path = source.archive
    if source.labels is not None and path.suffix.lower() not in _TIFF_NAMES:
        raise InputError(
            f"params.yaml: {source.section}.labels is {source.labels.name}, but {path.name} is no TIFF and has its "
            "labels; set it to null"
        )
    for name, image, label, where in track(_read_slices(source), f"prepare {path.name}"):
        check_image_id(name, str(path))
        label_map = None if label is None else label_insides(label, where)
        if label_map is not None and label_map.shape != image.shape[:2]:
            raise InputError(
                f"{where}: a label of {label_map.shape[0]} x {label_map.shape[1]} px for a slice of "
                f"{image.shape[0]} x {image.shape[1]} px; replace the label"
            )
        if label_map is not None and not label_map.any() and not source.allow_unlabelled:
            raise InputError(
                f"{where}: all black, so there is no cell; white is the inside of cells and black their membrane; "
                "replace the label, or set data.allow_unlabelled to true"
            )
        yield describe_image(name, to_rgb(image), label_map, [])


def label_insides(label: NDArray[Any], name: str) -> NDArray[np.uint16]:
    """Return the label map (H, W) of a label (H, W[, C]), the higher of whose two values is the inside of cells.

    Insides are one cell where they touch along a side of a pixel: a membrane that is one pixel thick, and steps
    diagonally, still parts them.

    Raises:
        InputError: the label has colours, more than two values, or more cells than a label map can number.
    """
    if label.ndim == 3 and (label[..., :3] == label[..., :1]).all():  # grey, saved as colours
        label = label[..., 0]
    if label.ndim != 2:
        raise InputError(f"{name}: a label in colours; give black for membrane and white for the inside of cells")
    values = np.unique(label)
    if len(values) > 2:
        some = ", ".join(map(str, values[:3].tolist()))
        raise InputError(
            f"{name}: a label of {len(values)} values ({some} ..); give black for membrane and white for the inside of "
            "cells, and nothing between"
        )
    # Of one value alone it is the sign that tells: all black is all membrane.
    inside = label > (values[0] if len(values) == 2 else 0)
    count, components = cv2.connectedComponents(inside.astype(np.uint8), connectivity=4)
    if count - 1 > np.iinfo(np.uint16).max:
        raise InputError(f"{name}: {count - 1} cells, more than 65,535; is it a label?")
    return components.astype(np.uint16)


def _read_slices(source: Source) -> Iterator[tuple[str, NDArray[Any], NDArray[Any] | None, str]]:
    """Yield the id, the array and the label of every slice, and where the label is from."""
    path, labelled, max_pixels = source.archive, source.labelled, source.max_pixels
    if path.suffix.lower() in _TIFF_NAMES:
        yield from _read_tiff_pairs(source)
        return
    images, label_files = list_folders(path, source.section, ("image", "label"))
    if not images:
        raise InputError(
            f"{path}: no image/<name>.png in it; give a stack with image/ and label/, or set another layout"
        )
    if labelled and (odd := sorted(images.keys() ^ label_files.keys())):
        kind, other = ("image", "label") if odd[0] in images else ("label", "image")
        raise InputError(f"{path}: {kind}/{odd[0]} has no {other} of that name; add it, or remove the {kind}")
    digits = max((len(number) for name in images for number in re.findall(r"\d+", name)), default=0)
    ids = {re.sub(r"\d+", lambda match: match[0].zfill(digits), name.rsplit(".", 1)[0]): name for name in images}
    if len(ids) < len(images):
        raise InputError(
            f"{path}: two slices of one name and number among {shorten(', '.join(sorted(images)))}; keep one"
        )
    try:
        for image_id, name in sorted(ids.items()):
            label = label_files[name](max_pixels) if labelled else None
            yield f"{path.stem}.{image_id}", images[name](max_pixels), label, f"{path}: label/{name}"
    finally:
        open_once.cache_clear()


def _read_tiff_pairs(source: Source) -> Iterator[tuple[str, NDArray[Any], NDArray[Any] | None, str]]:
    path, section = source.archive, source.section
    labels = source.labels if source.labelled else None
    if source.labelled and labels is None:
        raise InputError(f"{path}: a stack without labels; set {section}.labels to their TIFF")
    for file in (path, labels):
        if file is not None and not file.is_file():
            raise InputError(f"{file}: no such file; set data.dir, {section}.archive and .labels to where the stack is")
    images = read_tiff(path, source.max_pixels)
    insides: list[Any] = read_tiff(labels, source.max_pixels) if labels else [None] * len(images)
    if len(images) != len(insides):
        raise InputError(f"{labels}: {len(insides)} pages for the {len(images)} of {path.name}; give a label per slice")
    digits = len(str(len(images) - 1))
    for number, (image, inside) in enumerate(zip(images, insides, strict=True)):
        yield f"{path.stem}.{number:0{digits}d}", image, inside, f"{labels}: page {number}"
