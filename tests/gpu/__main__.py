"""`make gpu`: all that is to be learnt on a GPU, in one command, in minutes, without a network and without DVC.

In order: is what it computes right, is it fast, and are the networks good that it trains in the time that is left. Each
answer is written as soon as it is there; a question that fails does not stop the next.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.gpu.results import Ask, Results, Table

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

PARTS = ("right", "fast", "good")

ON_A_GPU = (
    "Made by `make gpu`: what the parts are, and what to do with what they leave, is in README.md beside this file."
)
ON_A_CPU = """\
**No GPU was at hand: this is `make gpu` on a CPU.** It shows that every part runs to its end, and what it will say. No
figure here is one of a GPU; those of `--tiny` are of nothing at all. `make gpu` on a GPU writes this file anew."""


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument(
        "--tiny", action="store_true", help="sizes so small that all parts end within a minute on a CPU"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="that all of it may take; default: %(default)s")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="for results.md and .json; default: tests/gpu, with --tiny SCRATCH, so that figures of a GPU stay",
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(".resume/gpu"),
        metavar="SCRATCH",
        help="for images and the run; default: %(default)s",
    )
    arguments = parser.parse_args()
    folder = arguments.results or (arguments.scratch if arguments.tiny else Path(__file__).parent)
    from pipeline.errors import one_line_errors
    from pipeline.folds import training
    from tests.gpu.setting import describe_device, make_setting

    # Children start from a process that has imported everything and has not touched the device.
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["tests.gpu.right"])
    if arguments.tiny:  # on a CPU images live there too, so that nothing is new on the day
        training.fits_on = lambda *_: True
    with one_line_errors():
        setting = make_setting(arguments.device, arguments.tiny, arguments.scratch, 60 * arguments.minutes)
    head = ON_A_CPU if setting.device.type == "cpu" else ON_A_GPU
    results = Results(folder, head, describe_device(setting), arguments.only)
    for number, part in enumerate(arguments.only):
        print(f"== {part}", flush=True)
        is_broken = ask_part(part, setting, results)
        if is_broken and (rest := arguments.only[number + 1 :]):
            # After an error of CUDA's own nothing runs in this process any more.
            minutes = str(max(0.0, setting.seconds_left / 60))
            sizes = ["--device", arguments.device, *(["--tiny"] if arguments.tiny else []), "--minutes", minutes]
            places = ["--results", str(folder), "--scratch", str(arguments.scratch)]
            os.execv(sys.executable, [sys.executable, "-m", "tests.gpu", *sizes, *places, "--only", *rest])
    for what in results.missed:
        print(f"missed: {what}", file=sys.stderr)
    print(f"written: {folder / 'results.md'}; the run: {setting.run}")
    sys.exit(1 if results.missed else 0)


def ask_part(part: str, setting: Any, results: Results) -> bool:
    """Ask the questions of a part, and say whether an error of CUDA's own ended it."""
    try:
        for title, ask in importlib.import_module(f"tests.gpu.{part}").questions(setting):
            table, seconds = answer(title, ask)
            results.add(part, table, seconds)
            if any("CUDA error" in what for what in table.missed):
                return True
    except Exception as error:  # whatever it is: the next part may run
        traceback.print_exc()
        results.add(part, Table(part, [], [], missed=[f"failed: {type(error).__name__}: {str(error)[:300]}"]), 0)
    return False


def answer(title: str, ask: Ask) -> tuple[Table, float]:
    """Return a question's table and the seconds that it took; what went wrong is a table too."""
    print(f"  {title}", flush=True)
    begin = time.monotonic()
    try:
        table = ask()
    except Exception as error:  # whatever it is: the next question may be answered
        traceback.print_exc()
        table = Table(title, [], [], missed=[f"{title}: failed: {type(error).__name__}: {str(error)[:300]}"])
    for row in table.rows:
        print("    " + " | ".join(row), flush=True)
    return table, time.monotonic() - begin


if __name__ == "__main__":
    main()
