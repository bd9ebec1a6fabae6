"""The yardstick for what training lacks: each acquisition is left out of a short training in turn, and then scored.

`python -m pipeline.studies.unseen [--setting NAME -S KEY=VALUE ...]` measures one setting: the full run's parameters
(data=full, train=cpu) with the changes that -S names. For each cluster of results/acquisitions.csv a network learns
from all images but the cluster's, those that look like it, their groups, and some images that are kept back as seen
ones. The cluster and the seen images are then found as a run finds its test set: sizes are read, images are seen at
every zoom, and the second level chooses, fitted on the seen images. `unseen_map` is the mean over clusters of the mean
AP of their images; `seen_map` is that of the seen images, each half of which is chosen by what the other half taught.

A row goes to results/unseen.csv as soon as a cluster is done; rows that are there are not measured again. At the end
all settings are compared with `default` on the clusters that both have: the mean difference, and its 95 % interval by
a bootstrap over clusters. `--length full` trains as long as train=cpu does: how far the short rows can be trusted.
"""

import argparse
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.diameter import equivalent_diameter, zooms_to_size
from pipeline.errors import InputError, one_line_errors
from pipeline.experiments.statistics import paired_bootstrap
from pipeline.folds.candidate_store import CandidateStore, write_candidates
from pipeline.folds.cross_validation import rate_images
from pipeline.folds.finder import CandidateFinder, NucleusFinder, find_nuclei, fit_models
from pipeline.folds.networks import Folds
from pipeline.folds.prediction import predict_estimated
from pipeline.folds.predictions import Predictions, write_predictions
from pipeline.folds.table import FoldedSplit
from pipeline.images.contrast import stretch_images
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.metric import average_precision, count_matches
from pipeline.nuclei.tuning import middle_decoding
from pipeline.params import Params
from pipeline.provenance import fingerprint
from pipeline.studies.acquisitions import TABLE
from pipeline.studies.measured import hand_on, name_settings
from pipeline.studies.probes import PROBES
from pipeline.studies.study import RESULTS, Network, compose, halve, keep_table, load_data, train_network
from pipeline.unet.runtime import start_runtime
from pipeline.unet.size import fit_reader

ROWS = RESULTS / "unseen.csv"
TEXT = {"changes": str, "settings": str}
# What levers are screened on: no stained image seen, a crowd of small nuclei, and tissue's brighter frames.
SCREEN = ("purple_on_white", "dark4", "dark6")
LENGTHS = {
    "short": (),
    "full": (
        "train.epochs=24", "train.steps_per_epoch=50", "train.tile_px=256", "train.crop_px=192",
        "train.ema_decay=0.995",
    ),
}  # fmt: skip
_FOLD = 0  # whose images are kept back as seen ones
_SEEN, _SCORED, _SIZED = 40, 24, 120  # images that are kept back, scored of a cluster, and looked at to learn sizes
_PROBED = 8  # images of each probe
_MOST_MPX, _FEWEST = 8.0, 6  # of a cluster: the pixels that are scored, as they are predicted, but some images at least


# By name an image (H, W, 3) uint8 RGB and its true label map (H, W).
Scored = Mapping[str, tuple[NDArray[np.uint8], NDArray[np.integer]]]


@dataclass(frozen=True)
class Case:
    """One cluster left out.

    Attributes:
        learnt: the images to learn from.
        seen: those that are kept back of what is learnt.
        scored: those that are scored; no network has seen their likes.
    """

    learnt: PreparedSplit
    seen: PreparedSplit
    scored: Scored


def make_case(folded: FoldedSplit, table: pd.DataFrame, cluster: str, params: Params) -> Case:
    """Leave a cluster out; `table` is that of `find_acquisitions`.

    Raises:
        InputError: there is no such cluster, or the table is of other images.
    """
    if cluster not in set(table["cluster"]):
        raise InputError(f"{cluster!r}: no such cluster; {TABLE.name} has {', '.join(sorted(set(table['cluster'])))}")
    images = folded.images.merge(table, on="image_id", how="left").sort_values("image_id", ignore_index=True)
    if images["cluster"].isna().any():
        name = images.loc[images["cluster"].isna(), "image_id"].iloc[0]
        raise InputError(f"{TABLE}: lacks the image {name}; run `python -m pipeline.studies.acquisitions`")
    own = images["cluster"] == cluster
    alike = own | images["looks_like"].fillna("").str.split().apply(lambda names: cluster in names)
    left = images[~images["group"].isin(images.loc[alike, "group"])]
    seen = _keep_back(left)
    learnt = left.loc[~left["group"].isin(seen["group"]), "image_id"]
    scored = _draw(folded.split.select(images.loc[own, "image_id"]), params)
    return Case(folded.split.select(learnt), folded.split.select(seen["image_id"]), scored)


def make_probes(folded: FoldedSplit, params: Params) -> Case:
    """Leave no acquisition out, and score images of the fold that is kept back, made unlike any by each probe.

    They are called `PROBE/IMAGE_ID`.
    """
    images = folded.images
    scored: dict[str, tuple[NDArray[np.uint8], NDArray[np.integer]]] = {}
    seen = _keep_back(images)
    left = images[(images["fold"] == _FOLD) & ~images["group"].isin(seen["group"])]
    for name, probe in PROBES.items():
        fits = left.loc[left["image_type"].isin(probe.image_types), "image_id"]
        chosen = folded.split.select(fits.iloc[_spread(len(fits), _PROBED)])
        pairs = zip(chosen.images(), chosen.label_maps(), strict=True)
        scored |= {f"{name}/{image_id}": probe.apply(image, truth) for (image_id, image), (_, truth) in pairs}
    return Case(folded.outside(_FOLD), folded.split.select(seen["image_id"]), scored)


def _keep_back(images: pd.DataFrame) -> pd.DataFrame:
    """Return the images of a fold that are kept back as seen ones, evenly over the types."""
    held_out = images[images["fold"] == _FOLD].sort_values(["image_type", "image_id"])
    return held_out.iloc[_spread(len(held_out), _SEEN)]


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of the numbers 0 .. count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def _draw(split: PreparedSplit, params: Params) -> Scored:
    """Return the images that are scored, sorted by name; the same draw each time."""
    areas = (split.table["height"] * split.table["width"]).to_numpy(float)
    mpx = areas * zooms_to_size(split.diameters_px, params.size) ** 2 / 1e6
    order = np.random.default_rng(0).permutation(len(split))[:_SCORED]
    chosen = order[(np.cumsum(mpx[order]) <= _MOST_MPX) | (np.arange(len(order)) < _FEWEST)]
    names = [split.image_ids[index] for index in sorted(chosen)]
    return {name: (split.image(name), split.label_map(name)) for name in names}


def measure(case: Case, params: Params, scratch: Path) -> pd.DataFrame:
    """Return image_id, is_seen, ap and octaves (how far off the size was read) of the seen and the scored images."""
    learnt = fingerprint({"images": case.learnt.image_ids, "recipe": params.recipe.describe()})
    network = train_network(f"unseen {learnt}", params, case.learnt, _FOLD, scratch)
    pixels = [hashlib.sha256(image.tobytes()).hexdigest() for image, _ in case.scored.values()]
    parts = {"network": network.key, "seen": case.seen.image_ids, "scored": list(case.scored), "pixels": pixels}
    folder = scratch / "unseen" / fingerprint(parts | {"params": params.model_dump()})
    path = folder / "images.csv"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        keep_table(path, _find_and_score(network, case, params, folder))
    return pd.read_csv(path)


def _find_and_score(network: Network, case: Case, params: Params, folder: Path) -> pd.DataFrame:
    """Find the nuclei of the case's images, as a run does those of its test set, and score them."""
    runtime, workers = start_runtime(params.runtime), params.housekeeping.workers
    model = network.model.to(runtime.device).eval()
    has_nuclei = case.learnt.table.loc[case.learnt.diameters_px > 0, "image_id"]
    sized = case.learnt.select(has_nuclei.iloc[_spread(len(has_nuclei), _SIZED)])
    pairs = zip(stretch_images(sized.images(), params.contrast), sized.diameters_px.tolist(), strict=True)
    reader = fit_reader(model, ((image, size) for (_, image), size in pairs), params.size, runtime)
    images = chain(case.seen.images(), ((name, image) for name, (image, _) in case.scored.items()))
    folds = Folds([model], [reader])
    predicted = predict_estimated(folds, images, params.contrast, params.size, params.predict, runtime)
    write_predictions(folder / "predictions.npz", predicted)
    predictions = Predictions([folder / "predictions.npz"])
    candidates = CandidateFinder(params.predict.scales, params.size.object_diameter_px, params.select)
    write_candidates(folder / "candidates.npz", rate_images(predictions, case.seen, candidates, workers))
    store = CandidateStore(folder / "candidates.npz")
    # The seen images in two halves, each found by what the other taught; the scored ones by what all of them taught.
    halves = halve(pd.Series(case.seen.image_ids))
    seen = [np.array(case.seen.image_ids)[halves == part].tolist() for part in (0, 1)]
    models = fit_models(store, [*reversed(seen), case.seen.image_ids], params.select)
    finders = [NucleusFinder(middle_decoding(params.decode), chooser, candidates) for chooser in models]
    found = chain.from_iterable(
        find_nuclei(predictions, names, finder, workers)
        for names, finder in zip([*seen, list(case.scored)], finders, strict=True)
    )
    rows: list[dict[str, Any]] = []
    for name, label_map in found:
        is_seen = name not in case.scored
        truth = case.seen.label_map(name) if is_seen else case.scored[name][1]
        zoom = float(zooms_to_size(np.array([median_diameter(truth)]), params.size)[0])
        ap = float(average_precision(count_matches(truth, label_map)).mean())
        octaves = float(np.log2(predictions[name][1] / zoom))
        rows.append({"image_id": name, "is_seen": is_seen, "ap": ap, "octaves": octaves})
    return pd.DataFrame(rows)


def median_diameter(label_map: NDArray[np.integer]) -> float:
    """Return the diameter in px of the median nucleus of a label map (H, W); 0 where there is none."""
    areas = np.bincount(label_map.ravel())[1:]
    return float(equivalent_diameter(np.array([np.median(areas[areas > 0])]))[0]) if areas.any() else 0.0


def summarize(images: pd.DataFrame, cluster: str) -> list[dict[str, Any]]:
    """Return a row of the images that `measure` found nuclei in, or one of each probe."""
    own, seen = images[~images["is_seen"]], images[images["is_seen"]]
    of_seen = {
        "seen_images": len(seen), "seen_ap": seen["ap"].mean(), "seen_octaves": seen["octaves"].abs().median(),
    }  # fmt: skip
    probe = own["image_id"].str.rpartition("/")[0].replace("", cluster)
    return [
        {"cluster": name, "images": len(part), "ap": part["ap"].mean(), "octaves": part["octaves"].abs().median()}
        | of_seen
        for name, part in own.groupby(probe)
    ]


def compare_settings(rows: pd.DataFrame, baseline: str, resamples: int, seed: int) -> pd.DataFrame:
    """Return a row per setting and length: its maps, and how much more than those of `baseline` on common clusters.

    `probe_map` is the mean over probes, which count in no other column.

    Args:
        rows: as in results/unseen.csv.
        baseline: the setting that others are compared with.
        resamples: of the bootstrap over clusters.
        seed: of the bootstrap.
    """
    table = []
    is_probe = rows["cluster"].isin(PROBES)
    for (setting, length), own in rows[~is_probe].groupby(["setting", "length"], sort=False):
        base = rows[~is_probe & (rows["setting"] == baseline) & (rows["length"] == length)]
        probes = rows[is_probe & (rows["setting"] == setting) & (rows["length"] == length)]
        both = base.merge(own, on="cluster", suffixes=("_first", "_second"))
        row = {"setting": setting, "length": length, "clusters": len(own), "unseen_map": own["ap"].mean(),
               "seen_map": own["seen_ap"].mean(), "probe_map": probes["ap"].mean(), "common": len(both)}  # fmt: skip
        if setting != baseline and len(both) > 1:
            difference = paired_bootstrap(both["ap_first"], both["ap_second"], both["cluster"], resamples, seed)
            row |= dict(zip(("difference", "low", "high"), difference, strict=True))
            row["seen_difference"] = (both["seen_ap_second"] - both["seen_ap_first"]).mean()
        table.append(row)
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/dsb2018"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, default=Path(".resume/studies"), metavar="DIR", help="%(default)s")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--setting", default="default", metavar="NAME", help="what the rows are called: %(default)s")
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="as dvc exp run")
    parser.add_argument("--clusters", nargs="+", metavar="NAME", help=f"default: all; levers: {' '.join(SCREEN)}")
    parser.add_argument("--length", choices=LENGTHS, default="short", help="of a training; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("folds/unseen.csv"), metavar="FILE", help="what runs read")
    arguments = parser.parse_args()
    with one_line_errors("stopped; run the same command to go on"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure the clusters of a setting that have no row yet, and print how all settings compare."""
    changes = " ".join(arguments.changes)
    rows = pd.read_csv(ROWS, dtype=TEXT, keep_default_na=False) if ROWS.is_file() else pd.DataFrame()
    if len(rows) and (other := set(rows.loc[rows["setting"] == arguments.setting, "changes"]) - {changes}):
        raise InputError(f"{ROWS}: --setting {arguments.setting} was measured with -S {other.pop() or 'nothing'}; "
                         "give these changes another name")  # fmt: skip
    params = compose("unseen", [*LENGTHS[arguments.length], f"runtime.threads={arguments.threads}", *arguments.changes])
    folded = load_data(arguments.data, arguments.scratch, params)
    table = pd.read_csv(TABLE, keep_default_na=False)
    key = {"setting": arguments.setting, "length": arguments.length}
    settings = name_settings(rows, key, params)
    for cluster in arguments.clusters or [*sorted(set(table["cluster"])), "probes"]:
        if (set(PROBES) if cluster == "probes" else {cluster}) <= _list_done(rows, key):
            continue
        begin = time.monotonic()
        case = make_probes(folded, params) if cluster == "probes" else make_case(folded, table, cluster, params)
        found = summarize(measure(case, params, arguments.scratch), cluster)
        rest = {"learnt_images": len(case.learnt), "seconds": round(time.monotonic() - begin), "changes": changes}
        rest["settings"] = settings
        rows = pd.concat([rows, pd.DataFrame([key | row | rest for row in found])], ignore_index=True)
        keep_table(ROWS, rows)
        for row in found:
            print(f"{arguments.setting}, {row['cluster']}: unseen {row['ap']:.3f}, seen {row['seen_ap']:.3f}, "
                  f"{rest['seconds']} s", flush=True)  # fmt: skip
    hand_on(arguments.out, rows, key, settings, set(table["cluster"]))
    compared = compare_settings(rows, "default", params.evaluate.bootstrap, params.evaluate.seed)
    print(compared.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep="-"))


def _list_done(rows: pd.DataFrame, key: Mapping[str, str]) -> set[str]:
    """Return the clusters of a setting and length that have a row."""
    if rows.empty:
        return set()
    return set(rows.loc[(rows[list(key)] == pd.Series(key)).all(axis=1), "cluster"])


if __name__ == "__main__":
    main()
