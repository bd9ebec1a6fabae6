"""The competition's zips to images with label maps: `archive.py` says what lies where in them.

In: a zip. Out: images (H, W, 3) uint8 with label maps (H, W) uint16, sorted by image_id. They are decoded in processes,
each of which reads the zip itself, but for its directory; at most a few per process are in memory at a time.
"""

import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.images.archive import (
    ArchiveImage,
    Place,
    find_place,
    index_archive,
    open_archive,
    open_file_once,
    read_place,
)
from pipeline.images.mask_png import UsedRows, decode_used_rows
from pipeline.images.masks import Mask, Problem, merge_masks, split_mask_file
from pipeline.images.raw import decode_image, to_rgb
from pipeline.images.source import PreparedImage, Source, describe_image
from pipeline.parallel import map_in_order, preload_workers
from pipeline.progress import track

_MOST_PIECES = 3  # of one nucleus, in an image whose every mask is in pieces


def read_competition(source: Source) -> Iterator[PreparedImage]:
    """Yield the images of a zip in the competition's layout.

    Raises:
        InputError: the archive or anything in it has a structural fault, or labels are given beside it.
    """
    if source.labels is not None:
        raise InputError(
            f"params.yaml: {source.section}.labels is {source.labels.name}, but the layout `competition` has its masks "
            "in the archive; set it to null"
        )
    preload_workers(__name__, source.workers)
    with open_archive(source.archive) as archive:
        jobs = [
            (source, entry.image_id, _find_places(archive, entry))
            for entry in index_archive(archive, source.labelled, source.allow_unlabelled)
        ]
    try:
        read = map_in_order(_read_job, jobs, source.workers)
        yield from track(read, f"prepare {source.archive.name}", len(jobs))
    finally:
        open_file_once.cache_clear()  # one worker is this process


def read_image(archive: zipfile.ZipFile, entry: ArchiveImage, source: Source) -> PreparedImage:
    """Read one image and its masks.

    Raises:
        InputError: a file does not decode, a mask's size is not its image's, its values are no mask's, or it is all
            nuclei in one.
    """
    assert archive.fp is not None  # it is open
    return _read_places(archive.fp, source, entry.image_id, _find_places(archive, entry))


def _find_places(archive: zipfile.ZipFile, entry: ArchiveImage) -> list[Place]:
    """Return where an image lies, and then its masks."""
    return [find_place(archive, name) for name in (entry.image_entry, *entry.mask_entries)]


def _read_job(job: tuple[Source, str, list[Place]]) -> PreparedImage:
    source, image_id, places = job
    return _read_places(open_file_once(source.archive), source, image_id, places)


def _read_places(file: IO[bytes], source: Source, image_id: str, places: list[Place]) -> PreparedImage:
    place, *mask_places = places
    data = read_place(file, place, f"{source.archive}: {place.name}", source.max_pixels)
    image = to_rgb(decode_image(data, place.name, source.max_pixels))
    label_map: NDArray[np.uint16] | None = None
    problems: list[Problem] = []
    if source.labelled:
        masks = [mask for each in mask_places for mask in _read_masks(file, each, image.shape[:2], source)]
        label_map, problems = merge_masks(masks, image.shape[:2], source.min_fragment_px)
        fragments = Counter(problem.mask_id for problem in problems if problem.problem == "fragment")
        pieces = 1 + min((fragments[mask.mask_id] for mask in masks), default=0)
        if pieces > _MOST_PIECES:
            raise InputError(
                f"{source.archive}: {mask_places[0].name}: each mask of its image is in {pieces} pieces or more; "
                "give each nucleus a mask, or number the pieces and save one label image (skimage.measure.label)"
            )
    return describe_image(image_id, image, label_map, problems)


def _read_masks(file: IO[bytes], place: Place, shape: tuple[int, ...], source: Source) -> list[Mask]:
    where = f"{source.archive}: {place.name}"
    data = read_place(file, place, where, source.max_pixels)
    used = decode_used_rows(data, source.max_pixels)
    if used is None:
        array = decode_image(data, place.name, source.max_pixels)
        used = UsedRows(array, 0, array.shape[:2])
    if used.shape != shape:
        raise InputError(
            f"{where}: a mask of {used.shape[0]} x {used.shape[1]} px "
            f"for an image of {shape[0]} x {shape[1]} px; replace the mask"
        )
    mask_id = place.name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return split_mask_file(used, mask_id, where, source.min_fragment_px)
