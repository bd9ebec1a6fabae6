"""What the score to expect is learnt from: images of known truth, found by networks that lack their like.

`python -m pipeline.studies.expected` goes through the clusters of the yardstick, `pipeline.studies.unseen`, which
trains its networks. Of each it scores the images that were left out, those that were kept back as seen ones, and eight
of the left-out ones once more, blurred, dimmed, rescaled, crowded or recoloured (brightfield has no such probe).
folds/known.csv, from which runs learn what score to expect, gets a row for each image: its AP, and the signals that are
there without its truth. Clusters that have rows are passed over: without the file, all are scored. At the end it prints
how well the score of each cluster is foretold by the others, and how well by a constant drop.

Networks are trained by the schedule of train=cpu, whose scores are foretold by what they teach, for 24 epochs: 16
minutes each on two cores. `--length short` does without.
"""

import argparse
from pathlib import Path

import pandas as pd

from pipeline.errors import one_line_errors
from pipeline.experiments.calibration import SIGNALS, judge_calibration, list_cases
from pipeline.studies.acquisitions import TABLE
from pipeline.studies.left_out import make_case, probe_case
from pipeline.studies.scoring import score_case
from pipeline.studies.study import compose, keep_table, load_data, make_parser
from pipeline.studies.unseen import LENGTHS

KNOWN = Path("folds/known.csv")
_FEWEST = 3  # acquisitions that a calibration is fitted on; it is judged by leaving one more out


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--clusters", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--out", type=Path, default=KNOWN, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--length", choices=LENGTHS, default="full", help="of a training; default: %(default)s")
    arguments = parser.parse_args()
    with one_line_errors("stopped; run the same command to go on"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Score the clusters that have no rows yet."""
    params = compose("unseen", [*LENGTHS[arguments.length], f"runtime.threads={arguments.threads}"])
    folded = load_data(arguments.data, arguments.scratch, params)
    table = pd.read_csv(TABLE, keep_default_na=False)
    types = dict(zip(folded.images["image_id"], folded.images["image_type"], strict=True))
    kept = (
        pd.read_csv(arguments.out, dtype={"image_id": str})
        if arguments.out.is_file()
        else pd.DataFrame({"cluster": []})
    )
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
        rated = pd.concat(images).dropna(subset=SIGNALS)  # large images have no signals
        kept = pd.concat([kept, rated[["image_id", "is_seen", "ap", *SIGNALS]].assign(cluster=cluster)])
        keep_table(arguments.out, kept)
    if kept["cluster"].nunique() > _FEWEST:
        print(judge(kept).to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def judge(images: pd.DataFrame) -> pd.DataFrame:
    """Return what is expected of each cluster, and of its probes, by what the others taught: `judge_calibration`."""
    seen = images[images["is_seen"]]
    of_cluster = pd.read_csv(TABLE, keep_default_na=False).set_index("image_id")["cluster"]
    names = "seen " + seen["image_id"].map(of_cluster)
    return judge_calibration(list_cases(images), seen.assign(left_out=seen["cluster"], acquisition=names, case=names))


if __name__ == "__main__":
    main()
