"""The shorter cut of `make faults`: the same checks, with fewer cases."""

import subprocess
from pathlib import Path

import pytest

from tests.faults import disk, fuzz, kills, load, oracles
from tests.faults.workspace import digest_results, make_workspace, stage_command


def test_a_training_that_is_killed_ends_in_the_same_bytes():
    assert kills.check(3, 0, ("train",)).startswith("3 of 3 kills survived")


def test_what_a_kill_leaves_of_dvc_s_own_files_stops_no_run(tmp_path: Path):
    folder = make_workspace(tmp_path)
    kills.finish(folder, "folds")
    wanted = digest_results(folder)
    (folder / "dvc.lock").unlink()
    (folder / ".dvc/tmp/rwlock").write_text('{"data/prep')
    for entry in (folder / ".dvc/cache/runs").glob("*/*/*"):
        entry.unlink()
    kills.compare(folder, wanted, kills.start(folder, "repro", "folds").wait(), "with damaged files of DVC")


def test_folds_side_by_side_end_in_the_same_bytes_as_one_after_another():
    assert kills.check_side_by_side(0).startswith("two folds side by side, killed once")


def test_a_full_disk_ends_in_a_clear_error_and_leaves_what_was_there(tmp_path: Path):
    folder = make_workspace(tmp_path)
    stages = ("prepare", "folds", "train")
    for stage in stages:
        subprocess.run(stage_command(folder, stage), cwd=folder, check=True)
    assert disk.check_full_disk(folder, stages) == 3


@pytest.mark.parametrize(
    ("check", "cases"),
    [
        (fuzz.check, 400),
        (oracles.check_round_trip, 100),
        (oracles.check_refusals, 60),
        (oracles.check_scores, 100),
        (load.check_large, 1500),
        (load.check_many, 100),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_few_cases_of(check, cases):
    assert check(cases, 0)
