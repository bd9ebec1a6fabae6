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
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.diameter import zooms_to_size
from pipeline.errors import InputError, one_line_errors
from pipeline.experiments.statistics import paired_bootstrap
from pipeline.folds.candidate_store import CandidateStore, write_candidates
from pipeline.folds.cross_validation import rate_images
from pipeline.folds.finder import CandidateFinder, fit_models
from pipeline.folds.networks import Folds
from pipeline.folds.prediction import predict_estimated
from pipeline.folds.predictions import Predictions, write_predictions
from pipeline.folds.table import FoldedSplit
from pipeline.images.contrast import stretch_images
from pipeline.images.splits import PreparedSplit
from pipeline.nuclei.metric import average_precision, count_matches
from pipeline.nuclei.selection import choose_set, rate_candidates
from pipeline.params import Params
from pipeline.provenance import fingerprint
from pipeline.studies.acquisitions import TABLE
from pipeline.studies.study import RESULTS, Network, compose, halve, keep_table, load_data, train_network
from pipeline.unet.runtime import start_runtime
from pipeline.unet.size import fit_reader

ROWS = RESULTS / "unseen.csv"
KEYS = ["setting", "length", "cluster"]
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
_MOST_MPX, _FEWEST = 8.0, 6  # of a cluster: the pixels that are scored, as they are predicted, but some images at least


@dataclass(frozen=True)
class Case:
    """One cluster left out.

    Attributes:
        learnt: the images to learn from.
        seen: the ids of those that are kept back of what is learnt.
        found: the images whose nuclei are found: those, and the cluster's that are scored.
    """

    learnt: PreparedSplit
    seen: list[str]
    found: PreparedSplit


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
    out = images["group"].isin(images.loc[alike, "group"])
    seen = _spread(images[~out & (images["fold"] == _FOLD)].sort_values(["image_type", "image_id"]), _SEEN)
    learnt = images[~out & ~images["group"].isin(images.loc[images["image_id"].isin(seen), "group"])]
    scored = _draw(folded.split.select(images.loc[own, "image_id"]), params)
    return Case(folded.split.select(learnt["image_id"]), sorted(seen), folded.split.select([*seen, *scored]))


def _spread(images: pd.DataFrame, most: int) -> list[str]:
    """Return the ids of at most so many images, evenly spread over the table."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int))
    return images["image_id"].iloc[chosen].tolist()


def _draw(split: PreparedSplit, params: Params) -> list[str]:
    """Return the ids of the images that are scored, by the same draw each time."""
    areas = (split.table["height"] * split.table["width"]).to_numpy(float)
    mpx = areas * zooms_to_size(split.diameters_px, params.size) ** 2 / 1e6
    order = np.random.default_rng(0).permutation(len(split))[:_SCORED]
    chosen = order[(np.cumsum(mpx[order]) <= _MOST_MPX) | (np.arange(len(order)) < _FEWEST)]
    return [split.image_ids[index] for index in chosen]


def measure(case: Case, params: Params, scratch: Path) -> pd.DataFrame:
    """Return image_id, is_seen, ap and octaves (how far off the size was read) of the seen and the scored images."""
    learnt = fingerprint({"images": case.learnt.image_ids, "recipe": params.recipe.describe()})
    network = train_network(f"unseen {learnt}", params, case.learnt, _FOLD, scratch)
    parts = {"network": network.key, "seen": case.seen, "found": case.found.image_ids, "params": params.model_dump()}
    folder = scratch / "unseen" / fingerprint(parts)
    path = folder / "images.csv"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        keep_table(path, _find_and_score(network, case, params, folder))
    return pd.read_csv(path)


def _find_and_score(network: Network, case: Case, params: Params, folder: Path) -> pd.DataFrame:
    """Find the nuclei of the case's images, as a run does those of its test set, and score them."""
    runtime = start_runtime(params.runtime)
    model = network.model.to(runtime.device).eval()
    sized = case.learnt.select(_spread(case.learnt.table[case.learnt.diameters_px > 0], _SIZED))
    pairs = zip(stretch_images(sized.images(), params.contrast), sized.diameters_px.tolist(), strict=True)
    reader = fit_reader(model, ((image, size) for (_, image), size in pairs), params.size, runtime)
    predicted = predict_estimated(
        Folds([model], [reader]), case.found.images(), params.contrast, params.size, params.predict, runtime
    )
    write_predictions(folder / "predictions.npz", predicted)
    predictions = Predictions([folder / "predictions.npz"])
    finder = CandidateFinder(params.predict.scales, params.size.object_diameter_px, params.select)
    workers = params.housekeeping.workers
    write_candidates(folder / "candidates.npz", rate_images(predictions, case.found, finder, workers))
    store = CandidateStore(folder / "candidates.npz")
    half = dict(zip(case.seen, halve(pd.Series(case.seen)).tolist(), strict=True))
    teachers = [case.seen, *([name for name in case.seen if half[name] != part] for part in (0, 1))]
    everything, *of_half = fit_models(store, teachers, params.select)
    rows: list[dict[str, Any]] = []
    zooms = zooms_to_size(case.found.diameters_px, params.size).tolist()
    for name, zoom in zip(case.found.image_ids, zooms, strict=True):
        chooser = of_half[half[name]] if name in half else everything
        candidates = store.candidates(name)
        label_map = choose_set(candidates, rate_candidates(chooser, candidates), params.select)
        ap = float(average_precision(count_matches(case.found.label_map(name), label_map)).mean())
        octaves = float(np.log2(predictions[name][1] / zoom))
        rows.append({"image_id": name, "is_seen": name in half, "ap": ap, "octaves": octaves})
    return pd.DataFrame(rows)


def summarize(images: pd.DataFrame) -> dict[str, Any]:
    """Return what a row says of the images that `measure` found nuclei in."""
    own, seen = images[~images["is_seen"]], images[images["is_seen"]]
    return {
        "images": len(own), "ap": own["ap"].mean(), "octaves": own["octaves"].abs().median(), "seen_images": len(seen),
        "seen_ap": seen["ap"].mean(), "seen_octaves": seen["octaves"].abs().median(),
    }  # fmt: skip


def compare_settings(rows: pd.DataFrame, baseline: str, resamples: int, seed: int) -> pd.DataFrame:
    """Return a row per setting and length: its maps, and how much more than those of `baseline` on common clusters.

    Args:
        rows: as in results/unseen.csv.
        baseline: the setting that others are compared with.
        resamples: of the bootstrap over clusters.
        seed: of the bootstrap.
    """
    table = []
    for (setting, length), own in rows.groupby(["setting", "length"], sort=False):
        base = rows[(rows["setting"] == baseline) & (rows["length"] == length)]
        both = base.merge(own, on="cluster", suffixes=("_first", "_second"))
        row = {"setting": setting, "length": length, "clusters": len(own), "unseen_map": own["ap"].mean(),
               "seen_map": own["seen_ap"].mean(), "common": len(both)}  # fmt: skip
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
    arguments = parser.parse_args()
    with one_line_errors("stopped; run the same command to go on"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure the clusters of a setting that have no row yet, and print how all settings compare."""
    changes = " ".join(arguments.changes)
    rows = pd.read_csv(ROWS, dtype={"changes": str}, keep_default_na=False) if ROWS.is_file() else pd.DataFrame()
    if len(rows) and (other := set(rows.loc[rows["setting"] == arguments.setting, "changes"]) - {changes}):
        raise InputError(f"{ROWS}: --setting {arguments.setting} was measured with -S {other.pop() or 'nothing'}; "
                         "give these changes another name")  # fmt: skip
    params = compose("unseen", [*LENGTHS[arguments.length], f"runtime.threads={arguments.threads}", *arguments.changes])
    folded = load_data(arguments.data, arguments.scratch, params)
    table = pd.read_csv(TABLE, keep_default_na=False)
    for cluster in arguments.clusters or sorted(set(table["cluster"])):
        key = {"setting": arguments.setting, "length": arguments.length, "cluster": cluster}
        if len(rows) and (rows[KEYS] == pd.Series(key)).all(axis=1).any():
            continue
        begin = time.monotonic()
        case = make_case(folded, table, cluster, params)
        found = summarize(measure(case, params, arguments.scratch))
        row = {**key, **found, "learnt_images": len(case.learnt), "seconds": round(time.monotonic() - begin)}
        rows = pd.concat([rows, pd.DataFrame([{**row, "changes": changes}])], ignore_index=True)
        keep_table(ROWS, rows)
        print(f"{arguments.setting}, {cluster}: unseen {row['ap']:.3f}, seen {row['seen_ap']:.3f}, "
              f"{row['seconds']} s", flush=True)  # fmt: skip
    compared = compare_settings(rows, "default", params.evaluate.bootstrap, params.evaluate.seed)
    print(compared.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep="-"))


if __name__ == "__main__":
    main()
