"""What the score to expect is learnt from: images of known truth, found by networks that lack their like.

`python -m pipeline.studies.expected` goes through the clusters of the yardstick, `pipeline.studies.unseen`, which
trains its networks. Of each it scores the images that were left out, those that were kept back as seen ones, and up to
eight left-out ones once more, blurred, dimmed, rescaled, crowded or recoloured (brightfield has no such probe).
folds/known.csv, from which runs learn what score to expect, gets a row for each image: its AP, and the signals that are
there without its truth. Clusters that have rows are passed over: without the file, all are scored. At the end it prints
how well the score of each cluster is foretold by the others, and how well by a constant drop.

Networks are trained for 24 epochs, as those of a run are for 30 by train=cpu: 16 minutes each on two cores. `--length
short` takes the yardstick's 300 steps, and a file of its own.
"""

import argparse
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError, one_line_errors
from pipeline.experiments.calibration import FEWEST, SIGNALS, judge_calibration, list_cases
from pipeline.studies.acquisitions import TABLE
from pipeline.studies.left_out import make_case, probe_case
from pipeline.studies.scoring import score_case
from pipeline.studies.study import compose, keep_table, load_data, make_parser
from pipeline.studies.unseen import LENGTHS

KNOWN = Path("folds/known.csv")
_COLUMNS = ["cluster", "image_id", "is_seen", "ap", *SIGNALS]


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
    if arguments.length == "short" and arguments.out == KNOWN:
        raise InputError(f"--length short: name another --out; runs learn from {KNOWN}, whose networks trained longer")
    params = compose("unseen", [*LENGTHS[arguments.length], f"runtime.threads={arguments.threads}"])
    folded = load_data(arguments.data, arguments.scratch, params)
    table = pd.read_csv(TABLE, keep_default_na=False)
    types = dict(zip(folded.images["image_id"], folded.images["image_type"], strict=True))
    done = {cluster for rows in _read(arguments.out) for cluster in rows["cluster"]}
    clusters = arguments.clusters or sorted(set(table["cluster"]))
    for cluster in [name for name in clusters if name not in done]:
        case = make_case(folded, table, cluster, params)
        probed = probe_case(case, types)
        images = [score_case(case, params, arguments.scratch)]
        means = images[0].groupby("is_seen")["ap"].mean()
        print(f"{cluster}: left out {means[False]:.3f}, seen {means[True]:.3f}", flush=True)
        if probed.scored:
            again = score_case(probed, params, arguments.scratch)
            images.append(again[~again["is_seen"]])
        rated = pd.concat(images).dropna(subset=SIGNALS)  # large images have no signals
        # Another call may have written since.
        keep_table(arguments.out, pd.concat([*_read(arguments.out), rated.assign(cluster=cluster)[_COLUMNS]]))
    kept = pd.concat(_read(arguments.out))
    if kept["cluster"].nunique() > FEWEST:  # it is judged by leaving one more out
        print(judge(kept).to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def _read(path: Path) -> list[pd.DataFrame]:
    """Return the rows that there are: one table, or none."""
    return [pd.read_csv(path, dtype={"image_id": str})] if path.is_file() else []


def judge(images: pd.DataFrame) -> pd.DataFrame:
    """Return what is expected of each cluster, and of its probes, by what the others taught: `judge_calibration`."""
    seen = images[images["is_seen"]]
    of_cluster = pd.read_csv(TABLE, keep_default_na=False).set_index("image_id")["cluster"]
    names = "seen " + seen["image_id"].map(of_cluster)
    return judge_calibration(list_cases(images), seen.assign(left_out=seen["cluster"], acquisition=names))


if __name__ == "__main__":
    main()
