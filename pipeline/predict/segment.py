"""Images of a user's own to nuclei: label maps, overlays to look at, and a table of nuclei.

In: PNG, JPEG or TIFF files, and the folder of a trained run. Out, for each image: `<name>.label_map.tif` (uint16, or
uint32 beyond 65,535 nuclei; 0 background), `<name>.overlay.png`, and `<name>.nuclei.csv`.

A file of several pictures, as a stack is, gives each an image of its own, `<name>.page000` and so on, and its
brightness is stretched for itself: `pipeline.images.tiff` says what a picture is. Images are read, predicted and
written one by one, but on a GPU, which sees some of one shape together.

An image with more pixels than `select.max_pixels` passes in strips from the network to its nuclei: besides the image
and its label map, the memory that it takes grows with its width and not with its area.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import sha256_of
from pipeline.folds.blend import average_zoom, read_weights
from pipeline.folds.finder import NucleusFinder, is_large, load_finder
from pipeline.folds.members import Member, predict_blend, predict_large
from pipeline.folds.networks import load_folds
from pipeline.folds.zoom import find_zoom
from pipeline.housekeeping import HousekeepingParams
from pipeline.images.contrast import Shown, find_contrast
from pipeline.images.splits import NamedImage
from pipeline.params import PredictParams, Recipe, SelectParams, SizeParams
from pipeline.predict.noise import is_noise
from pipeline.predict.reading import Opened, Outcome, explain_fault, read_all
from pipeline.predict.results import write_nuclei
from pipeline.progress import Bar, say
from pipeline.provenance import describe_environment, digest_code, fingerprint
from pipeline.unet.predict import Advance
from pipeline.unet.prediction import Prediction
from pipeline.unet.runtime import Runtime, start_runtime
from pipeline.unet.size import bound_zoom

_NEAR = 2 ** (1 / 16)  # half of the steps in which zooms are rounded
_FURTHER = 0.5**0.5  # the zoom of the next look, relative to the one before, at an image without nuclei


@dataclass(frozen=True)
class Segmenter:
    """A trained run at work: its members, what finds nuclei in what they predict, and how the zoom of these counts."""

    members: tuple[Member, ...]
    finder: NucleusFinder
    size: SizeParams
    predict: PredictParams
    runtime: Runtime


class TrainedRun(NamedTuple):
    """A run, and what of its parameters decides what it finds.

    Attributes:
        folder: its `folds` folder, with `weights/`, `sizes/`, `decoding.json` and `trees.npz`.
        ids: its folds.
        members: what the networks of each were trained by, where they run, how the size of nuclei is estimated, and
            views, zooms and tiles.
        size: the size of nuclei that the second level is told of.
        predict: the zooms.
        select: the second level's parameters.
    """

    folder: Path
    ids: Sequence[int]
    members: Mapping[str, tuple[Recipe, PredictParams]]
    size: SizeParams
    predict: PredictParams
    select: SelectParams


def load_segmenter(run: TrainedRun) -> Segmenter:
    """Load a trained run: the members that count.

    Raises:
        InputError: a file of it is missing or damaged, or its networks were trained by another recipe.
    """
    decoding, members = run.folder / "decoding.json", []
    for name, weight in read_weights(decoding, run.members).on_all.items():
        recipe, predict = run.members[name]
        networks = load_folds(run.folder / "weights" / name, run.folder / "sizes" / name, run.ids, recipe)
        members.append(Member(networks, recipe.contrast, recipe.size, predict, weight))
    finder = load_finder(decoding, run.folder / "trees.npz", run.predict.scales, run.size, run.select)
    runtime = start_runtime(next(iter(run.members.values()))[0].runtime)
    return Segmenter(tuple(members), finder, run.size, run.predict, runtime)


def fingerprint_run(run: TrainedRun) -> str:
    """Return a digest of all that decides what a run finds, but for images and machine."""
    kinds = [(kind, name, fold) for kind in ("weights", "sizes") for name in run.members for fold in run.ids]
    files = [run.folder / kind / name / f"{fold}.safetensors" for kind, name, fold in kinds]
    files += [run.folder / "decoding.json", run.folder / "trees.npz"]
    parts = {
        "files": [sha256_of(path) for path in files if path.exists()],  # what is missing is refused when it is loaded
        "members": {
            name: [recipe.describe(), recipe.size.model_dump(), predict.model_dump()]
            for name, (recipe, predict) in run.members.items()
        },
        "sections": [part.model_dump() for part in (run.size, run.predict, run.select)],
        "code": digest_code(__name__),
        "environment": describe_environment(),
    }
    return fingerprint(parts)


def segment_files(
    paths: Sequence[Path],
    out: Path,
    segmenter: Segmenter,
    housekeeping: HousekeepingParams,
    bar: Bar,
    channel: int | None = None,
) -> Iterator[Outcome]:
    """Find the nuclei of the images at `paths`, write them to `out`, and yield what became of each image.

    Each image is written before it is yielded. Whatever goes wrong with one stops no other.

    Args:
        paths: image files, which `choose_images` has seen.
        out: folder for the results; made if missing.
        segmenter: finds the nuclei.
        housekeeping: `predict_max_pixels` of an image.
        bar: is told of each file, and expects an image of it.
        channel: of files with several, the one that is taken alone, counted from 0.
    """
    faults: list[Outcome] = []
    images = read_all(paths, housekeeping.predict_max_pixels, channel, faults, bar)
    for group in _share_batches(images, segmenter):
        yield from _take(faults)
        begin = time.monotonic()
        shared, count = _predict_shared(group, segmenter), len(group)
        together_s = (time.monotonic() - begin) / count
        while group:  # nothing here holds an image: a large one takes gigabytes, and the next is read now
            yield _segment(group.pop(0), shared, out, segmenter, bar, together_s)
    yield from _take(faults)


def _take(faults: list[Outcome]) -> Iterator[Outcome]:
    while faults:
        yield faults.pop(0)


def _share_batches(images: Iterable[Opened], segmenter: Segmenter) -> Iterator[list[Opened]]:
    """Yield neighbours that the networks see together; the list is the caller's, to empty before the next.

    On a GPU they are images of one shape, as many as go through it at once. On a CPU, which gains nothing by that, and
    where an image takes long, each is alone.
    """
    predict = segmenter.predict
    room = 0 if segmenter.runtime.device.type == "cpu" else predict.batch * predict.tile_px**2
    group: list[Opened] = []
    for opened in images:
        shape = opened.image.shape
        if group and group[0].image.shape != shape:
            yield group
            group = []
        group.append(opened)
        del opened
        if is_large(shape, segmenter.finder.select) or (len(group) + 1) * shape[0] * shape[1] > room:
            yield group
            group = []
    if group:
        yield group


def _predict_shared(group: Sequence[Opened], segmenter: Segmenter) -> dict[str, Prediction]:
    """Return the predictions of images that go together, by name: none for a single one, nor where they fail together.

    Each is then predicted for itself, which shows whose fault it is.
    """
    if len(group) == 1:
        return {}
    try:
        return {each.image_id: each for each in _predict([(name, image) for _, name, image in group], segmenter)}
    except Exception:
        return {}


def _predict(images: Sequence[NamedImage], segmenter: Segmenter, zoom: float | None = None) -> Iterator[Prediction]:
    return predict_blend(segmenter.members, images, segmenter.size.object_diameter_px, segmenter.runtime, zoom)


def _segment(
    opened: Opened, shared: dict[str, Prediction], out: Path, segmenter: Segmenter, bar: Bar, begun_s: float
) -> Outcome:
    """Find and write the nuclei of one image, and return what became of it.

    The image's prediction is taken out of `shared`, where there is one already; it took `begun_s`. `bar` is told of a
    large image's parts, and in all of 1.
    """
    left, nuclei, fault, begin = 1.0, None, "", time.monotonic()

    def advance(part: float) -> None:
        nonlocal left
        left -= part
        bar(part)

    try:
        label_map = _find_nuclei(opened, shared.pop(opened.name, None), segmenter, advance)
        try:
            write_nuclei(out, opened.name, opened.image, label_map)
        except OSError as error:
            raise InputError(
                f"{out / opened.name}.*: cannot be written ({error.strerror}); shorten the image's name, or move away "
                "what has the name of a result"
            ) from error
        nuclei = int(label_map.max(initial=0))
    except Exception as error:
        fault = explain_fault(opened.path, opened.name, error)
    bar(left)
    return Outcome(opened.path, opened.name, nuclei, fault, False, begun_s + time.monotonic() - begin)


def _find_nuclei(
    opened: Opened, prediction: Prediction | None, segmenter: Segmenter, advance: Advance
) -> NDArray[np.int32]:
    """Return an image's label map (H, W) int32.

    Those of a large image are found while the networks predict, strip by strip.
    """
    height, width = opened.image.shape[:2]
    if is_noise(opened.image):
        return np.zeros((height, width), np.int32)
    if not is_large((height, width), segmenter.finder.select):
        if prediction is None:
            (prediction,) = _predict([(opened.name, opened.image)], segmenter)
        _tell_end(opened, prediction.zoom, segmenter)
        label_map = segmenter.finder.find(prediction.probabilities, prediction.zoom)
        return label_map if label_map.any() else _look_from_afar(opened, prediction.zoom, segmenter)

    members, runtime = segmenter.members, segmenter.runtime
    seen = [Shown(opened.image, find_contrast(opened.image, member.contrast)) for member in members]
    zooms = [find_zoom(member.folds, image, member.size, runtime) for member, image in zip(members, seen, strict=True)]
    known_px, weights = [each.size.object_diameter_px for each in members], [each.weight for each in members]
    _tell_end(opened, average_zoom(zooms, weights, known_px, segmenter.size.object_diameter_px), segmenter)

    def predict() -> Iterator[NDArray[np.uint8]]:
        for strip in predict_large(members, seen, zooms, runtime):
            advance(len(strip) / height)  # first: after the last one, nobody asks for more
            yield strip

    return segmenter.finder.find_in_strips(predict(), (height, width))


def _tell_end(opened: Opened, zoom: float, segmenter: Segmenter) -> None:
    """Say so where the size of an image's nuclei, by the zoom that it asks for, is at the end of the zooms."""
    lowest, highest = bound_zoom(opened.image.shape, segmenter.size)
    if lowest < highest and not lowest * _NEAR < zoom < highest / _NEAR:
        end = "larger" if zoom < highest / _NEAR else "smaller"
        say(f"{opened.path}: {opened.name}: its nuclei may be {end} than the networks can be shown; look twice")


def _look_from_afar(opened: Opened, zoom: float, segmenter: Segmenter) -> NDArray[np.int32]:
    """Return the label map (H, W) int32 of an image in which no nucleus was found at `zoom`.

    Where one fills the frame there is nothing by which to read its size: look from further and further off.
    """
    lowest, _ = bound_zoom(opened.image.shape, segmenter.size)
    label_map = np.zeros(opened.image.shape[:2], np.int32)
    while zoom > lowest and not label_map.any():
        zoom = max(lowest, zoom * _FURTHER)
        (prediction,) = _predict([(opened.name, opened.image)], segmenter, zoom)
        label_map = segmenter.finder.find(prediction.probabilities, zoom)
    return label_map
