"""What the yardstick leaves out of training, and what it scores.

In: the labelled images with their folds, and the table of acquisitions. Out: a `Case`: images to learn from, seen
images that are kept back, and images to score. Nothing of their cluster is learnt from, no image that looks like it,
and no cluster that half of them or more look like.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.diameter import zooms_to_size
from pipeline.errors import InputError
from pipeline.folds.table import FoldedSplit
from pipeline.images.splits import PreparedSplit, spread
from pipeline.params import Params, SizeParams
from pipeline.studies.probes import PROBES

FOLD = 0  # whose images are kept back as seen ones
_SEEN, _SCORED, _PROBED = 40, 24, 8  # images that are kept back, scored of a cluster, and of each probe
# Of a cluster: the pixels that are scored, of nuclei zoomed to one diameter, but some images at least. The diameter is
# no parameter: all settings are scored on the same images.
_MOST_MPX, _FEWEST, _DIAMETER_PX = 8.0, 6, 28.0
# A cluster that so many of the left-out images look like is left out too: fewer may be strays.
_MOST_ALIKE = 0.5

# By name an image (H, W, 3) uint8 RGB and its true label map (H, W).
Scored = Mapping[str, tuple[NDArray[np.uint8], NDArray[np.integer]]]


@dataclass(frozen=True)
class Case:
    """One cluster left out.

    Attributes:
        learnt: the images to learn from.
        seen: those that are kept back of what is learnt.
        groups: of the seen images, by image_id.
        scored: those that are scored.
    """

    learnt: PreparedSplit
    seen: PreparedSplit
    groups: Mapping[str, str]
    scored: Scored


def make_case(folded: FoldedSplit, table: pd.DataFrame, cluster: str, params: Params) -> Case:
    """Leave a cluster out; `table` is that of `find_acquisitions`.

    Raises:
        InputError: there is no such cluster, or the table is of other images.
    """
    if cluster not in (names := sorted(set(table["cluster"]))):
        raise InputError(f"{cluster!r}: no such cluster; acquisitions.csv has {', '.join(names)}")
    images = folded.images.merge(table, on="image_id", how="left").sort_values("image_id", ignore_index=True)
    if images["cluster"].isna().any():
        name = images.loc[images["cluster"].isna(), "image_id"].iloc[0]
        raise InputError(f"acquisitions.csv lacks the image {name}; run `python -m pipeline.studies.acquisitions`")
    own = images["cluster"] == cluster
    alike = images["looks_like"].fillna("").str.split()
    likened = alike[own].explode().value_counts()
    neighbours = likened.index[likened >= _MOST_ALIKE * own.sum()]
    out = own | alike.apply(lambda names: cluster in names) | images["cluster"].isin(neighbours)
    left = images[~images["group"].isin(images.loc[out, "group"])]
    seen = _keep_back(left)
    learnt = left.loc[~left["group"].isin(seen["group"]), "image_id"]
    scored = _draw(folded.split.select(images.loc[own, "image_id"]), params.size)
    return Case(folded.split.select(learnt), folded.split.select(seen["image_id"]), _map_groups(seen), scored)


def make_probes(folded: FoldedSplit, params: Params) -> Case:
    """Leave no acquisition out, and score images of the fold that is kept back, made unlike any by each probe.

    They are called `PROBE/IMAGE_ID`.
    """
    images = folded.images
    scored: dict[str, tuple[NDArray[np.uint8], NDArray[np.integer]]] = {}
    seen = _keep_back(images)
    left = images[(images["fold"] == FOLD) & ~images["group"].isin(seen["group"])]
    for name, probe in PROBES.items():
        fits = left.loc[left["image_type"].isin(probe.image_types), "image_id"]
        chosen = folded.split.select(fits.iloc[spread(len(fits), _PROBED)])
        pairs = zip(chosen.images(), chosen.label_maps(), strict=True)
        scored |= {f"{name}/{image_id}": probe.apply(image, truth) for (image_id, image), (_, truth) in pairs}
    return Case(folded.outside(FOLD), folded.split.select(seen["image_id"]), _map_groups(seen), scored)


def probe_case(case: Case, image_types: Mapping[str, str]) -> Case:
    """Return a case with some of its scored images made still more unlike what is known, by each probe for their type.

    They are called `PROBE/IMAGE_ID`; `image_types` are by image_id.
    """
    names = [[*case.scored][index] for index in spread(len(case.scored), _PROBED)]
    probed = {
        f"{probe_name}/{name}": probe.apply(*case.scored[name])
        for probe_name, probe in PROBES.items()
        for name in names
        if image_types[name] in probe.image_types
    }
    return replace(case, scored=probed)


def _keep_back(images: pd.DataFrame) -> pd.DataFrame:
    """Return the images of a fold that are kept back as seen ones, evenly over the types."""
    held_out = images[images["fold"] == FOLD].sort_values(["image_type", "image_id"])
    return held_out.iloc[spread(len(held_out), _SEEN)]


def _map_groups(images: pd.DataFrame) -> dict[str, str]:
    return dict(zip(images["image_id"], images["group"], strict=True))


def _draw(split: PreparedSplit, size: SizeParams) -> Scored:
    """Return the images that are scored, sorted by name: the same for every setting."""
    areas = (split.table["height"] * split.table["width"]).to_numpy(float)
    drawn_at = size.model_copy(update={"object_diameter_px": _DIAMETER_PX})
    mpx = areas * zooms_to_size(split.diameters_px, drawn_at) ** 2 / 1e6
    order = np.random.default_rng(0).permutation(len(split))[:_SCORED]
    chosen = order[(np.cumsum(mpx[order]) <= _MOST_MPX) | (np.arange(len(order)) < _FEWEST)]
    names = [split.image_ids[index] for index in sorted(chosen)]
    return {name: (split.image(name), split.label_map(name)) for name in names}
