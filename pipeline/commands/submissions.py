"""Files of submissions: `score`, `check`."""

import argparse
from pathlib import Path

from pipeline.commands.command import PARAMS, Commands
from pipeline.errors import InputError


def add_commands(commands: Commands) -> None:
    """Add the parsers of these commands."""
    score = commands.add_parser("score", help="score a submission against a solution, as Kaggle does")
    score.add_argument("submission", type=Path, metavar="SUBMISSION", help="CSV: ImageId,EncodedPixels")
    score.add_argument("solution", type=Path, metavar="SOLUTION", help="CSV: ImageId,EncodedPixels,Height,Width,Usage")
    score.add_argument("--images", action="store_true", help="print a row per image too")
    score.set_defaults(call=_score)

    check = commands.add_parser("check", help="check that Kaggle will take a submission")
    check.add_argument("submission", type=Path, metavar="SUBMISSION", help="CSV: ImageId,EncodedPixels")
    check.add_argument("--images", type=Path, required=True, metavar="ZIP", help="the test archive")
    check.set_defaults(call=_check)


def _score(arguments: argparse.Namespace) -> None:
    from pipeline.nuclei.solution import read_solution, score_submission
    from pipeline.nuclei.submission import read_submission

    result = score_submission(read_submission(arguments.submission), read_solution(arguments.solution))
    if arguments.images:
        print(result.table.to_csv(index=False, float_format="%.6f", lineterminator="\n"), end="")
    others = f"; {result.not_scored} others are not scored" if result.not_scored else ""
    print(f"mAP {result.mean:.6f} over {len(result.table)} images{others}")


def _check(arguments: argparse.Namespace) -> None:
    from pipeline.images.prepare import read_sizes
    from pipeline.nuclei.submission import read_submission
    from pipeline.params import load_params

    if not arguments.images.exists():
        raise InputError(
            f"{arguments.images}: no such archive; name the one whose images the submission is of by --images, "
            "data/sample/stage1_test.zip say"
        )
    sizes = read_sizes(arguments.images, load_params(PARAMS).housekeeping.max_pixels)
    submission = read_submission(arguments.submission)
    submission.check(sizes)
    print(f"{arguments.submission}: valid; {submission.count_nuclei()} nuclei in {len(sizes)} images")
