"""The run card: what a submission was made from, and what it is expected to score.

In: parameters, scores, files. Out: a dict of plain values, which `submit` writes as run.json.
"""

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.experiments.expectation import Expectation
from pipeline.files import sha256_of
from pipeline.params import Params

# What decides a result beside the code.
_PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "albumentations", "numpy", "scipy", "pandas",
    "scikit-learn", "scikit-image", "opencv-python-headless", "dvc",
)  # fmt: skip


# The folder of the code.
_PACKAGE = Path(__file__).resolve().parents[1]


def make_run_card(
    params: Params,
    cv: dict[str, Any],
    expected: Expectation,
    lb_map: float | None,
    wall_s: float | None,
    device: str,
    files: Iterable[Path],
    encoder_weights: dict[str, str],
) -> dict[str, Any]:
    """Return the run card.

    Args:
        params: of the run.
        cv: the summary of the cross-validation.
        expected: score to expect on the test set.
        lb_map: the test set's score, or None where the truth is not known.
        wall_s: seconds that the stages before this one took when they last ran; None where not recorded.
        device: where the networks ran.
        files: archives and weights; their SHA-256 goes into the card under their names.
        encoder_weights: source and digest of the pretrained encoder.
    """
    return {
        "cv_map": cv["cv_map"],
        "cv_std": cv["cv_std"],
        "cv_reweighted": expected.reweighted,
        "unseen_share": expected.unseen_share,
        "expected_lb": expected.expected,
        "expected_lb_low": expected.low,
        "expected_lb_high": expected.high,
        "lb_map": lb_map,
        "wall_s": wall_s,
        "seed": params.train.seed,
        "threads": params.train.threads,
        "device": device,
        "revision": find_revision(),
        "encoder_weights": encoder_weights,
        "digests": {f"{path.parent.name}/{path.name}": sha256_of(path) for path in files if path.is_file()},
        "versions": find_versions(),
        "params": params.model_dump(mode="json"),
    }


def find_revision() -> str | None:
    """Return the git revision, with `-dirty` where the code differs from it; None without git.

    Results are left out of the question, as a run in progress is always writing them; parameters stand in the card.
    """
    revision = _ask_git("rev-parse", "HEAD")
    return revision and revision + ("-dirty" if _ask_git("status", "--porcelain", "--", str(_PACKAGE)) else "")


def _ask_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def find_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
