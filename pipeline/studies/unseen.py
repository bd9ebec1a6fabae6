"""The yardstick for what training lacks: each acquisition is left out of a short training in turn, and then scored.

`python -m pipeline.studies.unseen [--setting NAME -S KEY=VALUE ...]` measures one setting: the full run's parameters
(data=full, train=cpu) with the changes that -S names. For each cluster of results/acquisitions.csv a network learns
from all images but the cluster's, those that look like it, their groups, and some images that are kept back as seen
ones. The cluster and the seen images are then found as a run finds its test set: sizes are read, images are seen at
every zoom, and the second level chooses, fitted on the seen images. `unseen_map` is the mean over clusters of the mean
AP of their images; `seen_map` is that of the seen images, each half of which is chosen by what the other half taught.

A row goes to results/unseen.csv as soon as a cluster is done; rows that are there are not measured again. At the end
all settings are compared with one (`--against`) on the clusters that both have: the mean difference, and its 95 %
interval by a bootstrap over clusters. `--length full` trains for 24 epochs, as train=cpu does for 30: how far the short
rows can be trusted.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import InputError, one_line_errors
from pipeline.experiments.statistics import paired_bootstrap
from pipeline.studies.acquisitions import TABLE
from pipeline.studies.left_out import make_case, make_probes
from pipeline.studies.measured import hand_on, name_settings
from pipeline.studies.probes import PROBES
from pipeline.studies.scoring import score_case
from pipeline.studies.study import RESULTS, compose, keep_table, load_data, make_parser
from pipeline.unet.runtime import start_runtime

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


def summarize(images: pd.DataFrame, cluster: str) -> list[dict[str, Any]]:
    """Return a row of the images that `score_case` scored, or one of each probe."""
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
    parser = make_parser(__doc__ or "")
    parser.add_argument("--setting", default="default", metavar="NAME", help="what the rows are called: %(default)s")
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="as dvc exp run")
    parser.add_argument("--clusters", nargs="+", metavar="NAME", help=f"default: all; levers: {' '.join(SCREEN)}")
    parser.add_argument(
        "--against", default="default", metavar="NAME", help="what settings are compared with: %(default)s"
    )
    parser.add_argument("--length", choices=LENGTHS, default="short", help="of a training; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("folds/unseen.csv"), metavar="FILE", help="what runs read")
    arguments = parser.parse_args()
    with one_line_errors("stopped; run the same command to go on"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure the clusters of a setting that have no row yet, and print how all settings compare."""
    changes = " ".join(arguments.changes)
    rows = read_rows()
    if len(rows) and (other := set(rows.loc[rows["setting"] == arguments.setting, "changes"]) - {changes}):
        raise InputError(f"{ROWS}: --setting {arguments.setting} was measured with -S {other.pop() or 'nothing'}; "
                         "give these changes another name")  # fmt: skip
    known = dict.fromkeys([*rows.get("setting", []), arguments.setting, "default"])
    if arguments.against not in known:
        raise InputError(f"--against {arguments.against}: no such setting; there are {', '.join(known)}")
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
        found = summarize(score_case(case, params, arguments.scratch), cluster)
        rest = {"learnt_images": len(case.learnt), "seconds": round(time.monotonic() - begin), "changes": changes}
        rest |= {"settings": settings, "device": start_runtime(params.runtime).device.type}
        rows = pd.concat([read_rows(), pd.DataFrame([key | row | rest for row in found])], ignore_index=True)
        keep_table(ROWS, rows)
        for row in found:
            print(f"{arguments.setting}, {row['cluster']}: unseen {row['ap']:.3f}, seen {row['seen_ap']:.3f}, "
                  f"{rest['seconds']} s", flush=True)  # fmt: skip
    hand_on(arguments.out, rows, key, settings, set(table["cluster"]))
    compared = compare_settings(rows, arguments.against, params.evaluate.bootstrap, params.evaluate.seed)
    print(compared.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep="-"))


def read_rows() -> pd.DataFrame:
    """Return the rows that there are: those too that another call has written since this one began."""
    return pd.read_csv(ROWS, dtype=TEXT, keep_default_na=False) if ROWS.is_file() else pd.DataFrame()


def _list_done(rows: pd.DataFrame, key: Mapping[str, str]) -> set[str]:
    """Return the clusters of a setting and length that have a row."""
    if rows.empty:
        return set()
    return set(rows.loc[(rows[list(key)] == pd.Series(key)).all(axis=1), "cluster"])


if __name__ == "__main__":
    main()
