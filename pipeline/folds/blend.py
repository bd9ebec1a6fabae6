"""Predictions of several members as one, averaged by weights.

In: stored predictions of each member, and weights, which may differ from fold to fold. Out: one mapping of the same
form.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.folds.predictions import Stored
from pipeline.unet.prediction import average

# How often each member counts; one that does not is left out.
Picks = dict[str, int]


class Weights(NamedTuple):
    """The chosen weights.

    Attributes:
        on_all: chosen on all images; for images that none of the networks saw.
        on_others: for each fold, chosen on the images of the other folds.
    """

    on_all: Picks
    on_others: dict[int, Picks]


@dataclass(frozen=True)
class Members:
    """Stored predictions of an ensemble's members, of the same images.

    Attributes:
        stored: of each member.
        known_px: the size of nuclei that each knows; 0 where images are seen at their own size.
        wanted_px: the size that the zoom of a blend's image is to bring nuclei to; 0 where it says nothing.
    """

    stored: Mapping[str, Stored]
    known_px: Mapping[str, float]
    wanted_px: float

    def blend(self, picks: Picks) -> "Blend":
        """Return the predictions, weighed so."""
        return Blend(self, picks)


class Blend(Mapping[str, tuple[NDArray[np.uint8], float]]):
    """The weighted mean of some members' predictions, made as it is asked for; of one member, what was stored.

    Args:
        members: the members.
        picks: how often each counts.
    """

    def __init__(self, members: Members, picks: Picks) -> None:
        self._members, self._picks = members, picks

    def __getitem__(self, image_id: str) -> tuple[NDArray[np.uint8], float]:
        parts = [self._members.stored[name][image_id][0] for name in self._picks]
        return average(parts, [*self._picks.values()]), self.zoom(image_id)

    def zoom(self, image_id: str) -> float:
        """Return the zoom that brings an image's nuclei, as the members estimated them, to the wanted size."""
        zooms = [self._members.stored[name][image_id][1] for name in self._picks]
        known_px = [self._members.known_px[name] for name in self._picks]
        return average_zoom(zooms, [*self._picks.values()], known_px, self._members.wanted_px)

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)

    @property
    def _first(self) -> Stored:
        return self._members.stored[next(iter(self._picks))]


class OutOfFold(Mapping[str, tuple[NDArray[np.uint8], float]]):
    """Out-of-fold predictions, each image's weighed by what the other folds chose.

    Args:
        members: the members.
        weights: the weights that were chosen.
        fold_of: the fold of each image.
    """

    def __init__(self, members: Members, weights: Weights, fold_of: Mapping[str, int]) -> None:
        self._blends = {fold: members.blend(picks) for fold, picks in weights.on_others.items()}
        self._fold_of = fold_of

    def __getitem__(self, image_id: str) -> tuple[NDArray[np.uint8], float]:
        return self._blends[self._fold_of[image_id]][image_id]

    def zoom(self, image_id: str) -> float:
        """Return an image's zoom, without its probabilities."""
        return self._blends[self._fold_of[image_id]].zoom(image_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fold_of)

    def __len__(self) -> int:
        return len(self._fold_of)


def average_zoom(
    zooms: Sequence[float], weights: Sequence[float], known_px: Sequence[float], wanted_px: float
) -> float:
    """Return the zoom that brings an image's nuclei to a size, by those that bring them to what members know.

    Args:
        zooms: of each member.
        weights: how often each counts, in octaves.
        known_px: the size of nuclei that each knows; of 0, its zoom says nothing.
        wanted_px: the size that is wanted; 0 gives a zoom of 1.
    """
    parts = zip(zooms, weights, known_px, strict=True)
    known = [(zoom * (wanted_px / size), weight) for zoom, weight, size in parts if size]
    if not wanted_px or not known:
        return 1.0
    if len(known) == 1:
        return known[0][0]
    return math.exp(sum(weight * math.log(zoom) for zoom, weight in known) / sum(weight for _, weight in known))


def read_weights(path: Path, members: Collection[str], folds: Collection[int] = ()) -> Weights:
    """Return the weights in a `decoding.json`.

    Args:
        path: of the file.
        members: those that there are.
        folds: that weights are needed for.

    Raises:
        InputError: the file is missing or damaged, or of other members or folds.
    """
    content = read_json(path)
    try:
        stated = content["members"]
        found = Weights(stated["all"], {int(fold): picks for fold, picks in stated["folds"].items()})
        for picks in (found.on_all, *found.on_others.values()):
            if not picks or not all(isinstance(number, int) and number > 0 for number in picks.values()):
                raise ValueError(f"{picks}")
            if others := picks.keys() - {*members}:
                raise ValueError(f"{min(others)} is no member")
        if lacking := {*folds} - found.on_others.keys():
            raise ValueError(f"none for fold {min(lacking)}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: no weights of members ({error}); run the stage `evaluate` again") from error
    return found


def equal_weights(members: Sequence[str], folds: Sequence[int]) -> Weights:
    """Return weights by which every member counts once."""
    return Weights(dict.fromkeys(members, 1), {fold: dict.fromkeys(members, 1) for fold in folds})
