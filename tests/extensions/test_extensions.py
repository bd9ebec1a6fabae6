"""What a newcomer adds is a small patch: each one here applies, passes the test it brings, and touches few files.

The patches are examples of the six things that are added most often; `README.md` lists where each goes.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# The files that each may touch, tests aside.
MOST_FILES = {"network": 3, "loss_term": 2, "effect": 2, "layout": 2, "output_format": 1, "folds_elsewhere": 1}


def touched_files(patch: Path) -> list[str]:
    """Return the files that a patch changes or makes."""
    return re.findall(r"^\+\+\+ b/(.+)$", patch.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_patch_is_known() -> None:
    assert {patch.stem for patch in HERE.glob("*.patch")} == set(MOST_FILES)


@pytest.mark.parametrize("name", MOST_FILES)
def test_a_patch_touches_few_files(name: str) -> None:
    files = touched_files(HERE / f"{name}.patch")
    assert len([file for file in files if not file.startswith("tests/")]) <= MOST_FILES[name], files


def test_the_patches_apply_and_pass_their_tests(tmp_path: Path) -> None:
    for folder in ("pipeline", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for file in ("params.yaml", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    shutil.copytree(ROOT / "data" / "sample", tmp_path / "data" / "sample")
    tests: list[str] = []
    for name in MOST_FILES:
        patch = HERE / f"{name}.patch"
        subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)
        tests += [file for file in touched_files(patch) if file.startswith("tests/")]
    assert len(tests) == len(MOST_FILES)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
