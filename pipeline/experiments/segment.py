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
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.experiments.inference import Folds, NamedImage, load_folds, predict_large, predict_with
from pipeline.experiments.instances import NucleusFinder, is_large, load_finder
from pipeline.experiments.results import write_nuclei
from pipeline.images.raw import decode_image, to_rgb
from pipeline.images.tiff import is_tiff, read_tiff
from pipeline.params import load_params
from pipeline.progress import track


def segment_files(paths: Sequence[Path], out: Path, params_path: Path, folds: Path) -> Iterator[tuple[Path, int]]:
    """Find the nuclei of the images at `paths`, write them to `out`, and yield each label map's path and count.

    A file that cannot be read does not stop the others: it is named when they are done.

    Args:
        paths: image files.
        out: folder for the results; made if missing.
        params_path: params.yaml of the trained run.
        folds: its `folds` folder, with `weights/`, `sizes/`, `decoding.json` and `candidates.npz`.

    Raises:
        InputError: there is no trained run, two images have one name, or a file is no image.
    """
    decoding_path = folds / "decoding.json"
    needed = ("weights", "sizes", "candidates.npz", "decoding.json")
    if not all((folds / name).exists() for name in needed):
        raise InputError(f"{folds}: no trained run; make one with `make repro`, or name one with --run")
    params = load_params(params_path)
    _check_paths(paths)
    finder = load_finder(decoding_path, folds / "candidates.npz", params)
    trained = load_folds(folds / "weights", folds / "sizes", params.folds.ids, params)
    faults: list[InputError] = []
    images = _read_all(paths, params.predict.max_pixels, faults)
    for name, image, label_map in track(_find_all(images, trained, finder), "predict", len(paths)):
        count = int(label_map.max(initial=0))
        path = write_nuclei(out, name, image, label_map)
        del image, label_map  # of a large image they are gigabytes, and the next is read now
        yield path, count
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise InputError(f"{len(faults)} of {len(paths)} files are left out: " + "; ".join(map(str, faults)))


def _check_paths(paths: Sequence[Path]) -> None:
    """Refuse what a look at the paths shows, before a network is loaded."""
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


def _read_all(paths: Sequence[Path], max_pixels: int, faults: list[InputError]) -> Iterator[NamedImage]:
    """Yield the images of all files as `read_images` does, and append what is wrong with a file to `faults`."""
    read: set[str] = set()
    for path in paths:
        try:
            for name, image in read_images(path, max_pixels):
                if name in read:
                    raise InputError(f"{path}: its results would be named {name}, as others are; use another --out")
                read.add(name)
                yield name, image
                del image
        except InputError as error:
            faults.append(error)
        except OSError as error:
            faults.append(InputError(f"{path}: cannot be read ({error.strerror}); check the file and its disk"))


def _find_all(
    images: Iterable[NamedImage], trained: Folds, finder: NucleusFinder
) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int32]]]:
    """Yield (name, image to draw on, label map) of all images, in their order."""
    for large, group in groupby(images, lambda item: is_large(item[1].shape, finder.params)):
        yield from (_find_large if large else _find_small)(group, trained, finder)


def _find_large(
    images: Iterable[NamedImage], trained: Folds, finder: NucleusFinder
) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int32]]]:
    """Find nuclei while the networks predict, strip by strip: besides an image there is only its label map."""
    for name, image in images:
        height, width = image.shape[:2]
        label_map = finder.find_in_strips(predict_large(trained, image, finder.params), (height, width))
        yield name, image, label_map
        del image, label_map


def _find_small(
    images: Iterable[NamedImage], trained: Folds, finder: NucleusFinder
) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int32]]]:
    """Find nuclei after the networks have predicted, where images of one shape share batches."""
    shown: dict[str, NDArray[np.uint8]] = {}

    def keep() -> Iterator[NamedImage]:
        for name, image in images:
            shown[name] = image
            yield name, image

    for name, probabilities, zoom in predict_with(trained, keep(), finder.params):
        yield name, shown.pop(name), finder.find(probabilities, zoom)


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
