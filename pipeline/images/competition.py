"""The competition's zips to images with label maps: `archive.py` says what lies where in them.

In: a zip. Out: images `(H, W, 3)` uint8 and label maps `(H, W)` uint16, sorted by image_id. They are decoded in
processes, each of which reads the zip itself; at most a few per process are in memory at a time.
"""

import zipfile
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.images.archive import ArchiveImage, index_archive, open_archive, open_once, read_entry
from pipeline.images.mask_png import UsedRows, decode_used_rows
from pipeline.images.masks import Mask, Problem, merge_masks, split_mask_file
from pipeline.images.raw import decode_image, to_rgb
from pipeline.images.source import PreparedImage, Source, describe_image
from pipeline.parallel import map_in_order
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
    with open_archive(source.archive) as archive:
        entries = index_archive(archive, source.labelled, source.allow_unlabelled)
    jobs = [(source, entry) for entry in entries]
    try:
        yield from track(map_in_order(_read_job, jobs, source.workers), f"prepare {source.archive.name}", len(jobs))
    finally:
        open_once.cache_clear()  # one worker is this process


def read_image(archive: zipfile.ZipFile, entry: ArchiveImage, source: Source) -> PreparedImage:
    """Read one image and its masks.

    Raises:
        InputError: a file does not decode, a mask's size is not its image's, its values are no mask's, or it is all
            nuclei in one.
    """
    data = read_entry(archive, entry.image_entry, source.max_pixels)
    image = to_rgb(decode_image(data, entry.image_entry, source.max_pixels))
    label_map: NDArray[np.uint16] | None = None
    problems: list[Problem] = []
    if source.labelled:
        masks = [mask for name in entry.mask_entries for mask in _read_masks(archive, name, image.shape[:2], source)]
        label_map, problems = merge_masks(masks, image.shape[:2], source.min_fragment_px)
        fragments = Counter(problem.mask_id for problem in problems if problem.problem == "fragment")
        pieces = 1 + min((fragments[mask.mask_id] for mask in masks), default=0)
        if pieces > _MOST_PIECES:
            raise InputError(
                f"{archive.filename}: {entry.mask_entries[0]}: each mask of its image is in {pieces} pieces or more; "
                "give each nucleus a mask, or number the pieces and save one label image (skimage.measure.label)"
            )
    return describe_image(entry.image_id, image, label_map, problems)


def _read_masks(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], source: Source) -> list[Mask]:
    data = read_entry(archive, name, source.max_pixels)
    used = decode_used_rows(data, source.max_pixels)
    if used is None:
        array = decode_image(data, name, source.max_pixels)
        used = UsedRows(array, 0, array.shape[:2])
    if used.shape != shape:
        raise InputError(
            f"{archive.filename}: {name}: a mask of {used.shape[0]} x {used.shape[1]} px "
            f"for an image of {shape[0]} x {shape[1]} px; replace the mask"
        )
    mask_id = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return split_mask_file(used, mask_id, f"{archive.filename}: {name}", source.min_fragment_px)


def _read_job(job: tuple[Source, ArchiveImage]) -> PreparedImage:
    source, entry = job
    return read_image(open_once(source.archive), entry, source)
