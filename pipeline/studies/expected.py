"""What the score to expect is learnt from: images of known truth, found by networks that lack their like.

`python -m pipeline.studies.expected` goes through the clusters of the yardstick, `pipeline.studies.unseen`, which
trains its networks. Of each it scores the images that were left out, those that were kept back as seen ones, and up to
eight left-out ones once more, blurred, dimmed, rescaled, crowded or recoloured (brightfield has no such probe).
folds/known.csv, from which runs learn what score to expect, gets a row for each image: its AP, and the signals that are
there without its truth. Clusters that have rows are passed over; rows of networks of other parameters are refused. At
the end it prints how well the score of each cluster is foretold by the others, and how well by a constant drop.

Networks are trained for 24 epochs, as those of a run are for 30 by train=cpu: 5 to 20 minutes each on two cores.
`--length short` takes the yardstick's 300 steps, and a file of its own.
"""

import argparse
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError, one_line_errors
from pipeline.experiments.calibration import FEWEST, SIGNALS, judge_calibration, list_cases
from pipeline.params import Params
from pipeline.studies.acquisitions import read_acquisitions
from pipeline.studies.left_out import make_case, probe_case
from pipeline.studies.rows import name_parameters
from pipeline.studies.scoring import score_case
from pipeline.studies.study import keep_table
from pipeline.studies.yardstick import compose_yardstick, make_yardstick_parser, open_yardstick

KNOWN = Path("folds/known.csv")
_COLUMNS = ["settings", "cluster", "image_id", "is_seen", "ap", *SIGNALS]


def main() -> None:
    parser = make_yardstick_parser(__doc__ or "", "full")
    parser.add_argument("--out", type=Path, default=KNOWN, metavar="FILE", help="default: %(default)s")
    arguments = parser.parse_args()
    with one_line_errors("stopped; run the same command to go on"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Score the clusters that have no rows yet, and print how well each is foretold by the others."""
    if not arguments.as_is:
        measure(arguments, compose_yardstick(arguments))
    kept = _read(arguments.out)
    if kept["cluster"].nunique() <= FEWEST:  # one more is left out
        print(f"{arguments.out}: {kept['cluster'].nunique()} clusters; how well they foretell one another is judged "
              f"where there are more than {FEWEST}")  # fmt: skip
    else:
        judged = judge(kept)
        print(judged.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
        print(describe(judged, "cases"))
        print(describe(judged[judged["case"] == judged["acquisition"]], "clusters alone"))


def measure(arguments: argparse.Namespace, params: Params) -> None:
    """Append the rows of each cluster that has none.

    Raises:
        InputError: the file has rows of other parameters; there is no such cluster, or no archive.
    """
    if arguments.length == "short" and arguments.out == KNOWN:
        raise InputError(f"--length short: name another --out; runs learn from {KNOWN}, whose networks trained longer")
    settings = name_parameters(params)
    if set(_read(arguments.out)["settings"]) - {settings}:
        raise InputError(
            f"{arguments.out}: its networks were trained with other parameters than those of now; name another --out, "
            "or remove the file, and all clusters are scored anew; --as-is judges it as it is"
        )
    yardstick = open_yardstick(arguments, params)
    images = yardstick.folded.images
    types = dict(zip(images["image_id"], images["image_type"], strict=True))
    for cluster in arguments.clusters or sorted(set(yardstick.acquisitions["cluster"])):
        if cluster in set(_read(arguments.out)["cluster"]):
            continue
        case = make_case(yardstick.folded, yardstick.acquisitions, cluster, params)
        probed = probe_case(case, types)
        scored = [score_case(case, params, arguments.scratch)]
        means = scored[0].groupby("is_seen")["ap"].mean()
        print(f"{cluster}: left out {means[False]:.3f}, seen {means[True]:.3f}", flush=True)
        if probed.scored:
            again = score_case(probed, params, arguments.scratch)
            scored.append(again[~again["is_seen"]])
        rated = pd.concat(scored).dropna(subset=SIGNALS)  # large images have no signals
        own = rated.assign(cluster=cluster, settings=settings)[_COLUMNS]
        keep_table(arguments.out, pd.concat([_read(arguments.out), own]))


def describe(judged: pd.DataFrame, what: str) -> str:
    """Return in a line how far off the expected scores of `judge` are, and how often their intervals hold the truth."""
    truth = judged["ap"]
    error, constant = ((judged[name] - truth).abs().mean() for name in ("expected", "constant"))
    held, reach = truth.between(judged["low"], judged["high"]).sum(), (judged["high"] - judged["low"]).mean() / 2
    return (
        f"{len(judged)} {what}: mean absolute error {error:.3f}, by a constant drop {constant:.3f}; "
        f"95 % intervals of +- {reach:.2f} hold {held} of them"
    )


def _read(path: Path) -> pd.DataFrame:
    """Return the rows that there are: those too that another call has written since this one began."""
    if not path.is_file():
        return pd.DataFrame(columns=_COLUMNS)
    rows = pd.read_csv(path, dtype={"settings": str, "cluster": str, "image_id": str})
    return rows if "settings" in rows else rows.assign(settings="unknown")  # as in files of older revisions


def judge(images: pd.DataFrame) -> pd.DataFrame:
    """Return what is expected of each cluster, and of its probes, by what the others taught: `judge_calibration`."""
    seen = images[images["is_seen"]]
    of_cluster = read_acquisitions().set_index("image_id")["cluster"]
    names = "seen " + seen["image_id"].map(of_cluster)
    return judge_calibration(list_cases(images), seen.assign(left_out=seen["cluster"], acquisition=names))


if __name__ == "__main__":
    main()
