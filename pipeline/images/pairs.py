"""Images with their label maps, as most data sets and tools have them.

In: a zip or a folder with `images/` (PNG, JPEG, TIFF) and `labels/` (PNG, TIFF), a label map for each image under the
same name but for its ending. A label map holds whole numbers of any type (floats without a fraction too), 0 for the
background and an id for each nucleus, with gaps or without. Out: images `(H, W, 3)` uint8 and label maps `(H, W)`
uint16, 1..N, sorted by image_id, which is that name. They are decoded in processes; at most a few per process are in
memory at a time.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.errors import InputError
from pipeline.images.archive import open_once
from pipeline.images.folders import Readers, list_folders
from pipeline.images.masks import Mask, Problem, clean_mask
from pipeline.images.raw import to_rgb
from pipeline.images.source import PreparedImage, Source, describe_image
from pipeline.parallel import map_in_order
from pipeline.progress import track
from pipeline.tables import check_image_id

_MOST_NUCLEI = np.iinfo(np.uint16).max
_MOST_PIECES = 1.1  # per id, in the mean; 1.014 at most in the 30 images of MoNuSeg
_FEW_PIECES = 3  # more than ids: so many are no sign
# Per piece: in drawn label maps that were blurred, resized or saved as JPEG, those of few pieces had 16 to 33.
_MOST_SPECKS = 3
_CURE = "save a whole number for each nucleus and 0 for the background, as a grey PNG or TIFF (scikit-image's label)"


class _Pair(NamedTuple):
    """An image to read: its id, what reads its file and that of its labels, and what messages call the labels."""

    source: Source
    image_id: str
    read_image: Callable[[int], NDArray[Any]]
    read_labels: Callable[[int], NDArray[Any]] | None
    where: str


def read_pairs(source: Source) -> Iterator[PreparedImage]:
    """Yield the images of a zip or a folder with their label maps.

    Raises:
        InputError: a file is missing or damaged, an image has no label map or the other way round, or two, or one of
            another size, or one that is no label map; or labels are given beside the archive.
    """
    if source.labels is not None:
        raise InputError(
            f"params.yaml: {source.section}.labels is {source.labels.name}, but the layout `pairs` has its label maps "
            "in the archive; set it to null"
        )
    jobs = _list_pairs(source)
    try:
        yield from track(map_in_order(_read_pair, jobs, source.workers), f"prepare {source.archive.name}", len(jobs))
    finally:
        open_once.cache_clear()  # one worker is this process


def number_nuclei(labels: NDArray[Any], where: str, min_fragment_px: int) -> tuple[NDArray[np.uint16], list[Problem]]:
    """Return the label map (H, W) uint16, 0 background, 1..N in the order of the ids, and what was mended in it.

    Each nucleus is cleaned as `clean_mask` says, but for one thing: a hole is filled only where it is background, and
    a nucleus that lies in another keeps its pixels.

    Args:
        labels: (H, W[, C]) as decoded.
        where: the archive and the file, for messages.
        min_fragment_px: as in `clean_mask`.

    Raises:
        InputError: the labels are in colours or no whole numbers, none of them is 0, there are more nuclei than uint16
            counts, the only id lies in several pieces, or ids lie in so many pieces or specks that they are classes, or
            wrapped or blurred.
    """
    values, ranks = np.unique(_take_ids(labels, where), return_inverse=True)
    ranks, count = ranks.reshape(labels.shape[:2]).astype(np.int32), len(values) - 1
    if values[0] != 0:
        raise InputError(f"{where}: ids from {int(values[0])} to {int(values[-1])}, and no 0, the background; {_CURE}")
    if count > _MOST_NUCLEI:
        raise InputError(f"{where}: {count} ids; a label map holds {_MOST_NUCLEI}; split the image")
    cleaned, problems, whole, pieces, specks = [], [], [], 0, 0
    for rank, box in enumerate(find_objects(ranks), 1):
        mask = Mask(str(int(values[rank])), box[0].start, box[1].start, ranks[box] == rank)
        clean, found = clean_mask(mask, min_fragment_px)
        specks += sum(problem.problem == "speck" for problem in found)
        pieces += sum(problem.problem == "fragment" for problem in found) + int(clean.pixels.any())
        whole += [mask.mask_id] if clean.pixels.any() else []
        pixels = clean.pixels & ((ranks[box] == rank) | (ranks[box] == 0))
        filled = int(np.count_nonzero(pixels & ~mask.pixels))
        problems += [problem for problem in found if problem.problem != "hole"]
        problems += [Problem(mask.mask_id, "hole", filled, "filled")] if filled else []
        cleaned += [(box, pixels)] if pixels.any() else []
    if len(whole) == 1 < pieces:
        raise InputError(
            f"{where}: {pieces} pieces of one id, {whole[0]}: a mask of many nuclei, and no label map; number the "
            "nuclei (scikit-image's label)"
        )
    most_pieces = max(_MOST_PIECES * len(whole), len(whole) + _FEW_PIECES)
    if pieces > most_pieces or specks > _MOST_SPECKS * (pieces + _FEW_PIECES):
        raise InputError(
            f"{where}: {count} id{'s' * (count > 1)} in {pieces} pieces and {specks} specks: classes, or ids that "
            f"wrapped at 255 or were blurred; {_CURE}"
        )
    label_map = np.zeros(ranks.shape, np.uint16)
    # A hole that two nuclei have around it, one in the other, is the inner one's: it is smaller, and comes later.
    for number in sorted(range(len(cleaned)), key=lambda i: -np.count_nonzero(cleaned[i][1])):
        box, pixels = cleaned[number]
        label_map[box][pixels] = number + 1
    return label_map, problems


def _take_ids(labels: NDArray[Any], where: str) -> NDArray[Any]:
    """Return (H, W) whole numbers, none below 0, of labels (H, W[, C])."""
    if labels.ndim == 3:  # grey, saved as colours or with an opacity that says nothing
        colours, opacity = (labels, None) if labels.shape[2] == 3 else (labels[..., :-1], labels[..., -1])
        if (colours != colours[..., :1]).any() or (opacity is not None and opacity.min() != opacity.max()):
            raise InputError(f"{where}: labels in colours; {_CURE}")
        labels = colours[..., 0]
    if labels.dtype.kind not in "uif":
        raise InputError(f"{where}: labels of type {labels.dtype}, which are no numbers; {_CURE}")
    if labels.dtype.kind == "f" and not (is_whole := np.isfinite(labels) & (np.trunc(labels) == labels)).all():
        raise InputError(f"{where}: the value {labels[~is_whole][0]:.6g} among the ids, no whole number; {_CURE}")
    if labels.min() < 0:
        raise InputError(f"{where}: the id {int(labels.min())}, below 0; {_CURE}")
    return labels


def _list_pairs(source: Source) -> list[_Pair]:
    path = source.archive
    image_files, label_files = list_folders(path, source.section, ("images", "labels"))
    images, labels = _name_by_stem(path, "images", image_files), _name_by_stem(path, "labels", label_files)
    if not images:
        raise InputError(
            f"{path}: no images/<name>.png or .tif in it; give images/ and labels/, or set another "
            f"{source.section}.layout"
        )
    if source.labelled and (odd := sorted(images.keys() ^ labels.keys())):
        kind, other = ("images", "labels") if odd[0] in images else ("labels", "images")
        name = (images if odd[0] in images else labels)[odd[0]]
        raise InputError(f"{path}: {kind}/{name} has no {other}/{odd[0]}.*; add it, or remove {kind}/{name}")
    pairs = []
    for image_id, name in sorted(images.items()):
        check_image_id(image_id, f"{path}: images/{name}")
        read_labels = label_files[labels[image_id]] if source.labelled else None
        where = f"{path}: labels/{labels.get(image_id)}"
        pairs.append(_Pair(source, image_id, image_files[name], read_labels, where))
    return pairs


def _name_by_stem(path: Path, folder: str, files: Readers) -> dict[str, str]:
    """Return the name of each file by its name without the ending."""
    names: dict[str, str] = {}
    for name in sorted(files):
        stem = name.rsplit(".", 1)[0]
        if stem in names:
            raise InputError(f"{path}: {folder}/{names[stem]} and {folder}/{name} have one name; remove one")
        names[stem] = name
    return names


def _read_pair(pair: _Pair) -> PreparedImage:
    source, where = pair.source, pair.where
    image = to_rgb(pair.read_image(source.max_pixels))
    if pair.read_labels is None:
        return describe_image(pair.image_id, image, None, [])
    labels = pair.read_labels(source.max_pixels)
    if labels.shape[:2] != image.shape[:2]:
        raise InputError(
            f"{where}: labels of {labels.shape[0]} x {labels.shape[1]} px for an image of {image.shape[0]} x "
            f"{image.shape[1]} px; replace one of them"
        )
    label_map, problems = number_nuclei(labels, where, source.min_fragment_px)
    if not label_map.any() and not source.allow_unlabelled:
        raise InputError(
            f"{where}: all background; add its nuclei, or set data.allow_unlabelled to true to take it as an image "
            "without nuclei"
        )
    return describe_image(pair.image_id, image, label_map, problems)
