"""How DVC starts a stage, and how people do: `python -m pipeline.stages NAME --ARGUMENT VALUE ...`."""

import argparse
import time
from importlib import import_module
from pathlib import Path

from pipeline.launch import run, settle_threads

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))

if __name__ == "__main__":
    begin = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m pipeline.stages", description="Run one stage of dvc.yaml.")
    parser.add_argument("stage", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the stage's own; NAME --help")
    parsed = parser.parse_args()
    settle_threads()
    main = import_module(f"pipeline.stages.{parsed.stage}").main
    run(main, parsed.arguments, time.monotonic() - begin)
