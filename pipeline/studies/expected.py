"""What the score to expect is learnt from: images of known truth, found by networks that lack their like.

`python -m pipeline.studies.expected` goes through the clusters of the yardstick, `pipeline.studies.unseen`, which
trains its networks. Of each it scores the images that were left out, those that were kept back as seen ones, and the
eight of the left-out ones once more, blurred, dimmed, rescaled, crowded or recoloured (brightfield has no such probe).
results/expected.csv gets a row for each image: its AP, and the signals that are there without its truth. Clusters that
have rows are passed over: without the file, all are scored. At the end it prints how well the score of each cluster is
foretold by the others, and how well by a constant drop.
"""

import argparse

import pandas as pd

from pipeline.errors import one_line_errors
from pipeline.experiments.calibration import judge_calibration, list_cases
from pipeline.studies.acquisitions import TABLE
from pipeline.studies.left_out import make_case, probe_case
from pipeline.studies.scoring import score_case
from pipeline.studies.study import RESULTS, compose, keep_table, load_data, make_parser

CASES = RESULTS / "expected.csv"


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--clusters", nargs="+", metavar="NAME", help="default: all")
    arguments = parser.parse_args()
    with one_line_errors("stopped; run the same command to go on"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Score the clusters that have no rows yet."""
    params = compose("unseen", [f"runtime.threads={arguments.threads}"])
    folded = load_data(arguments.data, arguments.scratch, params)
    table = pd.read_csv(TABLE, keep_default_na=False)
    types = dict(zip(folded.images["image_id"], folded.images["image_type"], strict=True))
    kept = pd.read_csv(CASES, dtype={"image_id": str}) if CASES.is_file() else pd.DataFrame({"cluster": []})
    clusters = arguments.clusters or sorted(set(table["cluster"]))
    for cluster in [name for name in clusters if name not in set(kept["cluster"])]:
        case = make_case(folded, table, cluster, params)
        probed = probe_case(case, types)
        images = [score_case(case, params, arguments.scratch)]
        means = images[0].groupby("is_seen")["ap"].mean()
        print(f"{cluster}: left out {means[False]:.3f}, seen {means[True]:.3f}", flush=True)
        if probed.scored:
            again = score_case(probed, params, arguments.scratch)
            images.append(again[~again["is_seen"]])
        kept = pd.concat([kept, pd.concat(images).assign(cluster=cluster)])
        keep_table(CASES, kept)
    if kept["cluster"].nunique() > 2:  # judged by leaving one out, it is fitted on two at least
        print(judge(kept).to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def judge(images: pd.DataFrame) -> pd.DataFrame:
    """Return what is expected of each cluster, and of its probes, by what the others taught: `judge_calibration`."""
    seen = images[images["is_seen"]]
    of_cluster = pd.read_csv(TABLE, keep_default_na=False).set_index("image_id")["cluster"]
    names = "seen " + seen["image_id"].map(of_cluster)
    return judge_calibration(list_cases(images), seen.assign(left_out=seen["cluster"], acquisition=names, case=names))


if __name__ == "__main__":
    main()
