"""The yardstick for what training lacks: each acquisition is left out of a short training in turn, and then scored.

`python -m pipeline.studies.unseen [--setting NAME -S KEY=VALUE ...]` measures one setting: the full run's parameters
(data=full, train=cpu) with the changes that -S names. For each cluster of results/acquisitions.csv a network learns
from all images but the cluster's, those that look like it, their groups, and some images that are kept back as seen
ones. The cluster and the seen images are then found as a run finds its test set: sizes are read, images are seen at
every zoom, and the second level chooses, fitted on the seen images. `unseen_map` is the mean over clusters of the mean
AP of their images; `seen_map` is that of the seen images, each half of which is chosen by what the other half taught.

A row goes to results/unseen.csv as soon as a cluster is done; rows that are there are not measured again. The last
cluster is `probes`: held-out images made unlike any that training has, by a network of which no cluster was kept. At
the end all settings are compared with one (`--against`) on the clusters that both have: the mean difference, and its
95 % interval by a bootstrap over clusters. `--length full` trains for 24 epochs, as train=cpu does for 30: how far the
short rows can be trusted is printed for each cluster that has four settings of both lengths.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import InputError, one_line_errors
from pipeline.experiments.runs import read_scores
from pipeline.experiments.statistics import paired_bootstrap
from pipeline.experiments.unseen import FEWEST_CLUSTERS
from pipeline.params import Params
from pipeline.studies.acquisitions import read_acquisitions
from pipeline.studies.left_out import make_case, make_probes
from pipeline.studies.probes import PROBES
from pipeline.studies.rows import ROWS, hand_on, name_parameters, read_rows, refuse_mixture, select_rows
from pipeline.studies.scoring import score_case
from pipeline.studies.study import keep_table
from pipeline.studies.yardstick import LENGTHS, compose_yardstick, make_yardstick_parser, open_yardstick
from pipeline.unet.runtime import start_runtime

# What is measured of probes: a training without any cluster left out.
_PROBES = "probes"
FEWEST_RANKED = 4  # settings of both lengths, by which lengths are compared


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
    """Return a row per setting and length: its maps, and on clusters that `baseline` has too how much more it has.

    `probe_map` is the mean over probes, which count in no other column. On common clusters its map is in the column
    `here` and the baseline's in one of the baseline's name; of fewer than six no difference with interval is given.

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
        # Clusters that look like one another are left out together, and share a network with its seen images.
        networks = own.drop_duplicates(["learnt_images", "seen_ap"])
        row = {"setting": setting, "length": length, "clusters": len(own), "unseen_map": own["ap"].mean(),
               "seen_map": networks["seen_ap"].mean(), "probe_map": probes["ap"].mean(),
               "common": len(both)}  # fmt: skip
        if setting != baseline and len(both):
            row |= {"here": both["ap_second"].mean(), baseline: both["ap_first"].mean()}
        if setting != baseline and len(both) >= FEWEST_CLUSTERS:
            difference = paired_bootstrap(both["ap_first"], both["ap_second"], both["cluster"], resamples, seed)
            row |= dict(zip(("difference", "low", "high"), difference, strict=True))
        table.append(row)
    return pd.DataFrame(table)


def tabulate_clusters(rows: pd.DataFrame, scores: pd.DataFrame, acquisitions: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cluster, hardest first: its AP by each setting and length, and in a cross-validation.

    Args:
        rows: as in results/unseen.csv.
        scores: image_id and ap of the cross-validation's images, whose likes training has.
        acquisitions: as `read_acquisitions` returns it.

    Raises:
        InputError: no cluster was measured.
    """
    measured = rows[~rows["cluster"].isin(PROBES)]
    if measured.empty:
        raise InputError(f"{ROWS}: no cluster was measured yet; leave out --as-is")
    table = measured.pivot_table("ap", "cluster", ["setting", "length"], sort=False)
    table.columns = [f"{setting}, {length}" for setting, length in table.columns]
    own = acquisitions.merge(scores[["image_id", "ap"]], on="image_id").groupby("cluster")["ap"].mean()
    table.insert(0, "cv", own.reindex(table.index))
    return table.sort_values(table.columns[1]).reset_index()


def rank_lengths(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how far short trainings rank settings as long ones do: cluster, settings (how many), and Spearman's rho.

    Args:
        rows: as in results/unseen.csv; clusters count that have FEWEST_RANKED settings of both lengths.
    """
    table = []
    for cluster, own in rows.groupby("cluster"):
        both = own.pivot_table("ap", "setting", "length").reindex(columns=[*LENGTHS]).dropna()
        if len(both) >= FEWEST_RANKED:
            rho = both["short"].corr(both["full"], method="spearman")
            table.append({"cluster": cluster, "settings": len(both), "rank_correlation": rho})
    return pd.DataFrame(table)


def main() -> None:
    parser = make_yardstick_parser(__doc__ or "", "short")
    parser.add_argument("--setting", default="default", metavar="NAME", help="what the rows are called: %(default)s")
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="as dvc exp run")
    parser.add_argument(
        "--against", default="default", metavar="NAME", help="what settings are compared with: %(default)s"
    )
    parser.add_argument(
        "--cv", type=Path, metavar="CSV", help="scores.csv of a run of the full data: print each cluster beside it"
    )
    parser.add_argument("--out", type=Path, default=Path("folds/unseen.csv"), metavar="FILE", help="what runs read")
    arguments = parser.parse_args()
    with one_line_errors("stopped; run the same command to go on"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure the clusters of a setting that have no row yet, and print how all settings compare."""
    known = dict.fromkeys([*read_rows()["setting"], arguments.setting])
    if arguments.against not in known:
        raise InputError(f"--against {arguments.against}: no such setting; there are {', '.join(known)}")
    params = compose_yardstick(arguments, arguments.changes)
    if not arguments.as_is:
        measure(arguments, params)
    rows, evaluate = read_rows(), params.evaluate
    tables = [compare_settings(rows, arguments.against, evaluate.bootstrap, evaluate.seed)]
    if arguments.cv:
        tables.append(tabulate_clusters(rows, read_scores(arguments.cv), read_acquisitions()))
    if len(ranked := rank_lengths(rows)):
        tables.append(ranked)
    for table in tables:
        print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep="-"))


def measure(arguments: argparse.Namespace, params: Params) -> None:
    """Append a row for each cluster of a setting that has none, and hand the setting on to runs when it is whole.

    Raises:
        InputError: the setting's rows are of other parameters; there is no such cluster, or no archive.
    """
    key, changes = {"setting": arguments.setting, "length": arguments.length}, " ".join(arguments.changes)
    settings = name_parameters(params)
    refuse_mixture(read_rows(), key, changes, settings)
    yardstick = open_yardstick(arguments, params)
    names = set(yardstick.acquisitions["cluster"])
    for cluster in arguments.clusters or [*sorted(names), _PROBES]:
        if (set(PROBES) if cluster == _PROBES else {cluster}) <= set(select_rows(read_rows(), key)["cluster"]):
            continue
        begin = time.monotonic()
        if cluster == _PROBES:
            case = make_probes(yardstick.folded, params)
        else:
            case = make_case(yardstick.folded, yardstick.acquisitions, cluster, params)
        found = summarize(score_case(case, params, arguments.scratch), cluster)
        rest = {"learnt_images": len(case.learnt), "seconds": round(time.monotonic() - begin), "changes": changes}
        rest |= {"settings": settings, "device": start_runtime(params.runtime).device.type}
        keep_table(ROWS, pd.concat([read_rows(), pd.DataFrame([key | row | rest for row in found])]))
        for row in found:
            print(f"{arguments.setting}, {row['cluster']}: unseen {row['ap']:.3f}, seen {row['seen_ap']:.3f}, "
                  f"{rest['seconds']} s", flush=True)  # fmt: skip
    hand_on(arguments.out, read_rows(), arguments.setting, params, names)


if __name__ == "__main__":
    main()
