"""The run card: what a submission was made from, and what it is expected to score.

In: parameters, scores, files. Out: two dicts of plain values: what is equal in equal runs, which `submit` writes as
run.json, and what is not, which lies beside it and is not in git. `keep` joins them.
"""

import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.experiments.expectation import Expectation
from pipeline.files import digest_archive, sha256_of
from pipeline.params import DataParams, Params

# What decides a result beside the code.
_PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "albumentations", "numpy", "scipy", "pandas",
    "scikit-learn", "scikit-image", "opencv-python-headless", "dvc",
)  # fmt: skip

# The folder of the code.
_PACKAGE = Path(__file__).resolve().parents[1]


def make_run_card(
    params: Params,
    cv: Mapping[str, Any],
    expected: Expectation,
    lb_map: float | None,
    files: Iterable[Path],
    encoder_weights: Mapping[str, Mapping[str, str]],
    precision: str | None,
    trained: pd.DataFrame,
) -> dict[str, Any]:
    """Return what is equal in equal runs.

    Args:
        params: of the run; `housekeeping` and `cluster`, which change no result, are left out.
        cv: the summary of the cross-validation.
        expected: score to expect on the test set.
        lb_map: the test set's score, or None where the truth is not known.
        files: archives and weights, files or folders; their SHA-256 goes into the card under their names. What is not
            there is passed over.
        encoder_weights: source and digest of each member's pretrained encoder; of one member they stand by themselves.
        precision: that the networks were trained in, which `auto` leaves to their device; None where their weights do
            not say.
        trained: the table of the training images.
    """
    encoders = {name: dict(own) for name, own in encoder_weights.items()}
    return {
        "cv_map": cv["cv_map"],
        "cv_std": cv["cv_std"],
        "expected_lb": expected.expected,
        "expected_lb_low": expected.low,
        "expected_lb_high": expected.high,
        "lb_map": lb_map,
        "seed": params.train.seed,
        "threads": params.runtime.threads,
        "precision": precision,
        # Of one member as it was before there were several.
        "encoder_weights": next(iter(encoders.values())) if len(encoders) == 1 else encoders,
        "digests": {_shorten(path): digest_archive(path) for path in files if path.exists()},
        "sources": describe_sources(params.data, trained),
        "versions": {package: _find_version(package) for package in _PACKAGES},
        "params": params.model_dump(mode="json", exclude={"housekeeping", "cluster"}),
    }


def _shorten(path: Path) -> str:
    """Return what a file goes by in the card: its folder too, and of a network the member's."""
    return "/".join(path.parts[-3 if path.suffix == ".safetensors" else -2 :])


def describe_sources(data: DataParams, trained: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return, by name of a source, its licence, whether it is scored, its weight, and how many images it has.

    Args:
        data: with the sources.
        trained: the table of the training images; only its column `source` is used. The images of a pack keep their
            sources' names: those that data does not know have an entry of their number alone.
    """
    counts = {
        str(name): {"images": int(count)} for name, count in trained["source"].value_counts().sort_index().items()
    }
    known = {
        name: source.model_dump(include={"licence", "scored", "weight"}) | counts.get(name, {})
        for name, source in data.sources.items()
    }
    return counts | known


def make_local_card(
    run: Path, device: str | None, wall_s: float | None, epoch_seconds: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Return what differs between equal runs: clock times, the revision, the machine.

    Args:
        run: the run card's file, by whose digest the two are known to belong together.
        device: where the networks were trained; None where their weights do not say.
        wall_s: seconds that the stages before `submit` took when they last ran; None where not recorded.
        epoch_seconds: by member and fold, the seconds of its training at each epoch's end.
    """
    return {
        "run": sha256_of(run),
        "wall_s": wall_s,
        "device": device,
        "revision": find_revision(),
        "python": platform.python_version(),
        "epoch_seconds": {fold: list(seconds) for fold, seconds in epoch_seconds.items()},
    }


def find_revision() -> str | None:
    """Return the git revision, with `-dirty` where the code differs from it; None without git.

    Results are left out of the question, as a run in progress is always writing them; parameters stand in the card. A
    repository that only happens to lie around this one says nothing.
    """
    if not _ask_git("ls-files", "--", str(_PACKAGE)):
        return None
    revision = _ask_git("rev-parse", "HEAD")
    return revision and revision + ("-dirty" if _ask_git("status", "--porcelain", "--", str(_PACKAGE)) else "")


def _ask_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
