"""Images of a user's own to nuclei: label maps, overlays to look at, and a table of nuclei.

In: PNG, JPEG or TIFF files, and the folder of a trained run. Out, for each image: `<name>.label_map.tif` (uint16, or
uint32 beyond 65,535 nuclei; 0 background), `<name>.overlay.png`, and `<name>.nuclei.csv`.

A TIFF with several pages is a stack: each page is an image of its own, `<name>.page000` and so on, and its brightness
is stretched for itself. Up to four samples per pixel, or three channels, are colours and not pages. Numbers of other
types than 8 bits are stretched as 16 bits are: see `pipeline.images.raw`.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray
from skimage.measure import regionprops_table

from pipeline.errors import InputError
from pipeline.experiments.figures import brighten_image
from pipeline.experiments.inference import load_folds, predict_with
from pipeline.experiments.instances import load_finder
from pipeline.files import atomic_path
from pipeline.images.raw import decode_image, to_rgb
from pipeline.params import load_params
from pipeline.progress import track

_OUTLINE_RGB = (255, 220, 0)
_STRIP_ROWS = 256  # at a time, so that memory does not grow with a large image's area
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders


def segment_files(paths: Sequence[Path], out: Path, params_path: Path, folds: Path) -> Iterator[tuple[Path, int]]:
    """Find the nuclei of the images at `paths`, write them to `out`, and yield each label map's path and count.

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
    finder = load_finder(decoding_path, folds / "candidates.npz", params)
    trained = load_folds(folds / "weights", folds / "sizes", params.folds.ids, params)
    shown: dict[str, NDArray[np.uint8]] = {}
    read: set[str] = set()

    def images() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for path in paths:
            for name, image in read_images(path, params.predict.max_pixels):
                if name in read:
                    raise InputError(f"{path}: its results would be named {name}, as others are; use another --out")
                read.add(name)
                shown[name] = image
                yield name, image

    predictions = predict_with(trained, images(), params)
    for name, probabilities, zoom in track(predictions, "predict", len(paths)):
        label_map = finder.find(probabilities, zoom)
        del probabilities  # of a large image, they are gigabytes
        yield write_nuclei(out, name, shown.pop(name), label_map), int(label_map.max(initial=0))


def read_images(path: Path, max_pixels: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield (name, image (H, W, 3) uint8 RGB) of a file; a TIFF stack gives one per page.

    Raises:
        InputError: the file is no image, is damaged, or has more than `max_pixels` pixels.
    """
    data = path.read_bytes()
    pages = (
        _read_tiff(data, path, max_pixels) if data.startswith(_TIFF) else [decode_image(data, str(path), max_pixels)]
    )
    del data
    for number, page in enumerate(pages):
        yield (path.stem if len(pages) == 1 else f"{path.stem}.page{number:03d}"), to_rgb(page)


def _read_tiff(data: bytes, path: Path, max_pixels: int) -> list[NDArray[Any]]:
    """Return the pages of a TIFF, of all its series in turn, each (H, W) or (H, W, 1..4), its palette looked up."""
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return [page for series in file.series for page in _read_series(series, path, max_pixels)]
    except InputError:
        raise
    except Exception as error:  # tifffile raises whatever its many codecs do
        raise InputError(f"{path}: not a readable TIFF ({type(error).__name__}: {error}); save it anew") from error


def _read_series(series: tifffile.TiffPageSeries, path: Path, max_pixels: int) -> list[NDArray[Any]]:
    axes, shape = series.axes, series.shape
    rows, columns = shape[axes.index("Y")], shape[axes.index("X")]
    if rows * columns == 0 or rows * columns > max_pixels:
        raise InputError(f"{path}: {rows} x {columns} px; give 1 to predict.max_pixels = {max_pixels} pixels")
    array = series.asarray()
    if array.dtype.kind not in "buif" or not np.isfinite(array).all():
        raise InputError(f"{path}: values of type {array.dtype}, or not finite; convert the image to 8 or 16 bits")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    colour = "S" if "S" in axes else "C" if "C" in axes and shape[axes.index("C")] == 3 else ""
    samples = shape[axes.index(colour)] if colour else 1
    if samples > 4:
        raise InputError(f"{path}: {samples} samples per pixel; save it as grey, RGB, or a page per channel")
    order = [i for i, axis in enumerate(axes) if axis not in ("Y", "X", colour)]
    order += [axes.index(axis) for axis in ("Y", "X", *colour)]
    pages = array.transpose(order).reshape(-1, rows, columns, *([samples] if colour else []))
    if series.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pages = (np.iinfo(pages.dtype).max if pages.dtype.kind in "ui" else pages.max()) - pages
    if series.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE:
        # The table has 16 bits per colour; its upper 8 are what was there before it was stored.
        colours = np.asarray(series.keyframe.colormap)
        pages = (colours[:, pages] >> 8).astype(np.uint8).transpose(1, 2, 3, 0)
    return list(pages)


def write_nuclei(out: Path, name: str, image: NDArray[np.uint8], label_map: NDArray[np.int32]) -> Path:
    """Write the label map, overlay and table of an image (H, W, 3) uint8, and return the label map's path.

    The table has label, area_px, and the centroid's row and column in px, both counted from 0.
    """
    count = int(label_map.max(initial=0))
    path = out / f"{name}.label_map.tif"
    with atomic_path(path) as partial:
        tifffile.imwrite(
            partial,
            label_map.astype(np.uint16 if count < 2**16 else np.uint32),
            compression="zlib",
            photometric="minisblack",
        )
    measured = pd.DataFrame(regionprops_table(label_map, properties=("label", "area", "centroid")))
    measured.columns = pd.Index(["label", "area_px", "row", "column"])
    with atomic_path(out / f"{name}.nuclei.csv") as partial:
        measured.astype({"area_px": int}).round(2).to_csv(partial, index=False, lineterminator="\n")
    with atomic_path(out / f"{name}.overlay.png") as partial:
        overlay = draw_outlines(brighten_image(image)[0], label_map)
        cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR, dst=overlay)
        partial.write_bytes(cv2.imencode(".png", overlay)[1].data)
    return path


def draw_outlines(image: NDArray[np.uint8], label_map: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return image (H, W, 3) uint8 with the inner rim of each nucleus painted over."""
    result = image.copy()
    height = len(label_map)
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, height)
        at_ends = (int(top == 0), int(bottom == height)), (1, 1)
        padded = np.pad(label_map[max(0, top - 1) : bottom + 1], at_ends, mode="edge")
        inner = padded[1:-1, 1:-1]
        neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        rim = (inner > 0) & np.any([inner != other for other in neighbours], axis=0)
        result[top:bottom][rim] = _OUTLINE_RGB
    return result
