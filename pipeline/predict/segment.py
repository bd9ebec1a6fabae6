"""Images of a user's own to nuclei: label maps, overlays to look at, and a table of nuclei.

In: PNG, JPEG or TIFF files, and the folder of a trained run. Out, for each image: `<name>.label_map.tif` (uint16, or
uint32 beyond 65,535 nuclei; 0 background), `<name>.overlay.png`, and `<name>.nuclei.csv`.

A TIFF with several pages is a stack: each page is an image of its own, `<name>.page000` and so on, and its brightness
is stretched for itself. Up to four samples per pixel, or three channels, are colours and not pages. Numbers of other
types than 8 bits are stretched as 16 bits are: see `pipeline.images.raw`.

An image with more pixels than `select.max_pixels` passes in strips from the network to its nuclei: besides the image
and its label map, the memory that it takes grows with its width and not with its area.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.folds.finder import NucleusFinder, is_large, load_finder
from pipeline.folds.networks import Folds, load_folds
from pipeline.folds.prediction import predict_estimated, predict_large
from pipeline.images.raw import decode_image, to_rgb
from pipeline.images.splits import NamedImage
from pipeline.images.tiff import is_tiff, read_tiff
from pipeline.params import (
    ContrastParams,
    HousekeepingParams,
    NetworkParams,
    PredictParams,
    RuntimeParams,
    SelectParams,
    SizeParams,
)
from pipeline.predict.results import write_nuclei
from pipeline.progress import Bar, progress_bar
from pipeline.unet.predict import Advance
from pipeline.unet.runtime import Runtime, start_runtime

# An image to draw on, and its label map, by name.
Found = tuple[str, NDArray[np.uint8], NDArray[np.int32]]


@dataclass(frozen=True)
class Segmenter:
    """A trained run at work: networks, what finds nuclei in what they predict, and how images are shown to them."""

    folds: Folds
    finder: NucleusFinder
    contrast: ContrastParams
    size: SizeParams
    predict: PredictParams
    runtime: Runtime


def load_segmenter(
    folds: Path,
    ids: Sequence[int],
    contrast: ContrastParams,
    unet: NetworkParams,
    runtime: RuntimeParams,
    size: SizeParams,
    predict: PredictParams,
    select: SelectParams,
) -> Segmenter:
    """Load a trained run.

    Args:
        folds: its `folds` folder, with `weights/`, `sizes/`, `decoding.json` and `candidates.npz`.
        ids: its folds.
        contrast: of its params.yaml, as all that follows.
        unet: its network.
        runtime: where it runs.
        size: how the size of nuclei is estimated.
        predict: views, zooms and tiles.
        select: the second level's parameters.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    finder = load_finder(folds / "decoding.json", folds / "candidates.npz", predict.scales, size, select)
    networks = load_folds(folds / "weights", folds / "sizes", ids, unet)
    return Segmenter(networks, finder, contrast, size, predict, start_runtime(runtime))


def segment_files(
    paths: Sequence[Path], out: Path, segmenter: Segmenter, housekeeping: HousekeepingParams
) -> Iterator[tuple[Path, int]]:
    """Find the nuclei of the images at `paths`, write them to `out`, and yield each label map's path and count.

    A file that cannot be read does not stop the others: it is named when they are done.

    Args:
        paths: image files, which `check_paths` has seen.
        out: folder for the results; made if missing.
        segmenter: finds the nuclei.
        housekeeping: `predict_max_pixels` of an image.

    Raises:
        InputError: a file is no image, or two have one name.
    """
    faults: list[InputError] = []
    with progress_bar("predict", len(paths)) as bar:
        images = _read_all(paths, housekeeping.predict_max_pixels, faults, bar)
        for name, image, label_map in _find_all(images, segmenter, bar):
            count = int(label_map.max(initial=0))
            path = write_nuclei(out, name, image, label_map)
            del image, label_map  # of a large image they are gigabytes, and the next is read now
            yield path, count
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise InputError(f"{len(faults)} of {len(paths)} files are left out: " + "; ".join(map(str, faults)))


def check_run(folds: Path) -> None:
    """Refuse a `folds` folder that holds no trained run, before anything in it is read.

    Raises:
        InputError: it holds none.
    """
    if not all((folds / name).exists() for name in ("weights", "sizes", "candidates.npz", "decoding.json")):
        raise InputError(f"{folds}: no trained run; make one with `make repro`, or name one with --run")


def check_paths(paths: Sequence[Path]) -> None:
    """Refuse what a look at the paths of images shows, before a network is loaded.

    Raises:
        InputError: a path is no file, or two have one name.
    """
    names = [path.stem for path in paths]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise InputError(
            f"{double[0]}: two images of this name would share their results; predict each into an --out of its own"
        )
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path}: a folder; give the files in it, {path}/*.png say")
        if not path.is_file():
            raise InputError(f"{path}: no such file")


def _read_all(paths: Sequence[Path], max_pixels: int, faults: list[InputError], bar: Bar) -> Iterator[NamedImage]:
    """Yield the images of all files as `read_images` does, and append what is wrong with a file to `faults`.

    `bar` expects an image of each file; it is told of every page more, and of files that give none.
    """
    read: set[str] = set()
    for path in paths:
        pages = 0
        try:
            for name, image in read_images(path, max_pixels):
                if name in read:
                    raise InputError(f"{path}: its results would be named {name}, as others are; use another --out")
                read.add(name)
                pages += 1
                if pages > 1:
                    bar.expect(1)
                yield name, image
                del image
        except InputError as error:
            faults.append(error)
        except OSError as error:
            faults.append(InputError(f"{path}: cannot be read ({error.strerror}); check the file and its disk"))
        if pages == 0:
            bar(1)


def _find_all(images: Iterable[NamedImage], segmenter: Segmenter, advance: Advance) -> Iterator[Found]:
    """Yield (name, image to draw on, label map) of all images, in their order."""
    for large, group in groupby(images, lambda item: is_large(item[1].shape, segmenter.finder.select)):
        yield from (_find_large if large else _find_small)(group, segmenter, advance)


def _find_large(images: Iterable[NamedImage], segmenter: Segmenter, advance: Advance) -> Iterator[Found]:
    """Find nuclei while the networks predict, strip by strip: besides an image there is only its label map."""

    def predict(image: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        height = len(image)
        for strip in predict_large(
            segmenter.folds, image, segmenter.contrast, segmenter.size, segmenter.predict, segmenter.runtime
        ):
            advance(len(strip) / height)  # first: after the last one, nobody asks for more
            yield strip

    for name, image in images:
        height, width = image.shape[:2]
        label_map = segmenter.finder.find_in_strips(predict(image), (height, width))
        yield name, image, label_map
        del image, label_map


def _find_small(images: Iterable[NamedImage], segmenter: Segmenter, advance: Advance) -> Iterator[Found]:
    """Find nuclei after the networks have predicted, where images of one shape share batches."""
    shown: dict[str, NDArray[np.uint8]] = {}

    def keep() -> Iterator[NamedImage]:
        for name, image in images:
            shown[name] = image
            yield name, image

    for name, probabilities, zoom in predict_estimated(
        segmenter.folds,
        keep(),
        segmenter.contrast,
        segmenter.size,
        segmenter.predict,
        segmenter.runtime,
        advance,
    ):
        yield name, shown.pop(name), segmenter.finder.find(probabilities, zoom)


def read_images(path: Path, max_pixels: int) -> Iterator[NamedImage]:
    """Yield (name, image (H, W, 3) uint8 RGB) of a file; a TIFF stack gives one per page.

    The image is the caller's, to write on.

    Raises:
        InputError: the file is no image, is damaged, or has more than `max_pixels` pixels.
    """
    pages = read_tiff(path, max_pixels) if is_tiff(path) else [decode_image(path.read_bytes(), str(path), max_pixels)]
    count = len(pages)
    for number in range(count):
        image = to_rgb(pages.pop(0))
        # What needed no change comes back as a view to read from; it is nobody else's.
        image.setflags(write=True)
        yield (path.stem if count == 1 else f"{path.stem}.page{number:03d}"), image
        del image
