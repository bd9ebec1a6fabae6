"""Everything that can go wrong, tried: `python -m tests.faults [NAME ...]`; `--seed N` draws other cases.

Each line that is printed is a figure of tests/README.md. `tests/faults/test_faults.py` runs a shorter cut.
"""

import argparse
import time
from collections.abc import Callable

from tests.faults import atheris_readers, cluster, disk, fuzz, kills, load, oracles, volume

CHECKS: dict[str, Callable[[int], str]] = {
    "kills": lambda seed: kills.check(50, seed),
    "side_by_side": kills.check_side_by_side,
    "cluster": lambda seed: cluster.check(20, seed),
    "disk": disk.check,
    "fuzz": lambda seed: fuzz.check(10_000, seed),
    "atheris": lambda seed: atheris_readers.check(20_000, seed),
    "round_trip": lambda seed: oracles.check_round_trip(2000, seed),
    "refusals": lambda seed: oracles.check_refusals(500, seed),
    "scores": lambda seed: oracles.check_scores(1000, seed),
    "many": lambda seed: load.check_many(5000, seed),
    "images": lambda seed: volume.check_images(20_000, seed),
    "stage2": lambda seed: volume.check_stage2(3019, seed),
    "large": lambda seed: load.check_large(20_000, seed),
}


def main() -> None:
    """Run the checks that are named, or all; the first that fails ends in a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CHECKS))
    parser.add_argument("--seed", type=int, default=2018)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CHECKS):
        parser.error(f"no check is called {min(unknown)}; there are {', '.join(CHECKS)}")
    for name in arguments.names or CHECKS:
        begin = time.monotonic()
        figure = CHECKS[name](arguments.seed)
        print(f"{name}: {figure.removeprefix(f'{name}: ')} (took {time.monotonic() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
