"""Predictions to nuclei. In: probabilities of an image at several zooms. Out: its label map.

Two ways lead there: one decoding of the mean over zooms, and the second-level model, which chooses among the candidates
of many decodings.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.folds.predictions import Stored
from pipeline.folds.tree_store import read_trees
from pipeline.nuclei.candidates import Candidates, find_candidates
from pipeline.nuclei.decoding import Decoding, average_zooms, decode_instances, decode_strips
from pipeline.nuclei.selection import choose_set, list_decodings, rate_candidates
from pipeline.nuclei.signals import Signals, measure_signals
from pipeline.nuclei.trees import Trees
from pipeline.parallel import map_in_order
from pipeline.params import SelectParams, SizeParams


def read_decodings(path: Path) -> dict[str, Decoding]:
    """Return the chosen decoding parameters in a `decoding.json`: under `all`, and under each fold's id.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = read_json(path)
    try:
        return {name: Decoding(**values) for name, values in {"all": content["all"], **content["folds"]}.items()}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no decoding parameters ({error}); run the stage `evaluate` again") from error


def is_large(shape: tuple[int, ...], select: SelectParams) -> bool:
    """Whether an image of `shape` (H, W, ...) is left to one decoding, which needs it only in strips."""
    return shape[0] * shape[1] > select.max_pixels


@dataclass(frozen=True)
class CandidateFinder:
    """Finds the candidates that the second level chooses among.

    Attributes:
        scales: the zooms that images were predicted at, relative to their own.
        object_diameter_px: the size of nuclei at an image's own zoom; 0 where it is not known.
        select: how, and which images are too large.
    """

    scales: tuple[float, ...]
    object_diameter_px: float
    select: SelectParams

    def find(self, probabilities: NDArray[np.uint8], zoom: float) -> Candidates | None:
        """Return the candidates of an image, or None where one decoding is to find its nuclei.

        Args:
            probabilities: (S, H, W, 3), value / 255.
            zoom: at which the image was seen.
        """
        if self.select.trees == 0 or is_large(probabilities.shape[1:3], self.select):
            return None
        expected_px = max(self.object_diameter_px, 1.0) / zoom
        return find_candidates(probabilities, self.scales, list_decodings(self.select), expected_px)


@dataclass(frozen=True)
class NucleusFinder:
    """Finds nuclei: by trees where there are some and the image is not too large, else by `decoding`."""

    decoding: Decoding
    trees: Trees | None
    candidates: CandidateFinder

    @property
    def select(self) -> SelectParams:
        """How candidates are chosen."""
        return self.candidates.select

    def find(self, probabilities: NDArray[np.uint8], zoom: float) -> NDArray[np.int32]:
        """Return the label map (H, W) int32 of `probabilities` (S, H, W, 3), value / 255, seen at `zoom`."""
        return self.find_with_signals(probabilities, zoom)[0]

    def find_with_signals(
        self, probabilities: NDArray[np.uint8], zoom: float
    ) -> tuple[NDArray[np.int32], Signals | None]:
        """Return what `find` does, and what tells how well it was found: None where it is left to one decoding."""
        candidates = self.candidates.find(probabilities, zoom) if self.trees else None
        if self.trees is None or candidates is None:
            return decode_instances(average_zooms(probabilities), self.decoding), None
        return choose_rated(candidates, rate_candidates(self.trees, candidates), self.select)

    def find_in_strips(self, strips: Iterable[NDArray[np.uint8]], shape: tuple[int, int]) -> NDArray[np.int32]:
        """Return what `find` does of an image that `is_large`, from strips (rows, W, 3) of its mean over zooms.

        Args:
            strips: from the top on, value / 255; read as they are needed.
            shape: H and W of the image.
        """
        return decode_strips(strips, shape, self.decoding)


def choose_rated(
    candidates: Candidates, worth: NDArray[np.floating], select: SelectParams
) -> tuple[NDArray[np.int32], Signals]:
    """Return the label map (H, W) int32 that `choose_set` makes of candidates, and its signals."""
    label_map, indices = choose_set(candidates, worth, select)
    return label_map, measure_signals(candidates.features, worth, indices)


def load_finder(
    decoding: Path, trees: Path, scales: tuple[float, ...], size: SizeParams, select: SelectParams
) -> NucleusFinder:
    """Return what finds the nuclei of images that no fold saw: from all images of the cross-validation.

    Args:
        decoding: `decoding.json`.
        trees: `trees.npz` of the same run.
        scales: the zooms that images are predicted at, relative to their own.
        size: the size of nuclei at an image's own zoom.
        select: the second level's parameters.

    Raises:
        InputError: a file is missing or damaged.
    """
    choice = read_decodings(decoding)["all"]
    return NucleusFinder(choice, read_trees(trees), CandidateFinder(scales, size.object_diameter_px, select))


def find_nuclei(
    predictions: Stored, image_ids: Sequence[str], finder: NucleusFinder, workers: int
) -> Iterator[tuple[str, NDArray[np.int32], Signals | None]]:
    """Yield (image_id, label_map (H, W) int32, signals) of stored predictions; see `find_with_signals`."""
    # The array travels, not the pack: opening one again for each image would read its whole directory.
    jobs = ((finder, *predictions[image_id]) for image_id in image_ids)
    for image_id, found in zip(image_ids, map_in_order(_find_job, jobs, workers), strict=True):
        yield image_id, *found


def _find_job(
    job: tuple[NucleusFinder, NDArray[np.uint8], float],
) -> tuple[NDArray[np.int32], Signals | None]:
    finder, probabilities, zoom = job
    return finder.find_with_signals(probabilities, zoom)
