"""How a stage starts and ends: by itself, by an error, when it is asked to, and when the DVC that started it is gone.

And what it notes in the journal.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.errors import InputError
from pipeline.files import write_json
from pipeline.launch import Journal, read_journal, read_seconds, run, settle_threads
from pipeline.params import Params

ROOT = Path(__file__).resolve().parents[1]
_STAGE = """
import os, sys, time
from pathlib import Path
from pipeline.files import atomic_path
from pipeline.launch import run

def main(out: Path) -> None:
    "Write a file for as long as it takes."
    with atomic_path(out) as partial:
        (out.parent / "pid").write_text(str(os.getpid()))
        time.sleep(60)

sys.argv = ["stage", "--out", sys.argv[1]]
run(main)
"""
# As DVC does: the stage through a shell, which here stays between the two.
_STARTER = """
import os, subprocess, sys
command = f"{sys.executable} {sys.argv[1]} {sys.argv[2]}; exit $?"
subprocess.run(["/bin/sh", "-c", command], env={**os.environ, "DVC_STAGE": "train"})
"""


def await_text(path: Path) -> str:
    end = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    return path.read_text()


def is_running(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat")).read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "stage.py").write_text(_STAGE.replace("run(main)", "main.__module__ = 'stage'; run(main)"))
    return tmp_path / "stage.py"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_stop_leaves_nothing_half_written(stage, tmp_path, number):
    command = [sys.executable, stage, tmp_path / "out"]
    # These tests may run under nohup themselves.
    run = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    )
    await_text(tmp_path / "pid")
    run.send_signal(number)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "run the same command to go on" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pid", "stage.py"]


def test_nohup_keeps_a_stage_alive_when_its_terminal_goes(stage, tmp_path):
    run = subprocess.Popen(["nohup", sys.executable, stage, tmp_path / "out"], stderr=subprocess.DEVNULL)
    await_text(tmp_path / "pid")
    run.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert run.poll() is None
    run.terminate()
    assert run.wait(30) == 130


def test_a_stage_ends_when_the_dvc_that_started_it_is_killed(stage, tmp_path):
    (tmp_path / "dvc.py").write_text(_STARTER)
    starter = subprocess.Popen([sys.executable, tmp_path / "dvc.py", stage, tmp_path / "out"])
    pid = int(await_text(tmp_path / "pid"))
    starter.kill()
    starter.wait()
    end = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < end, "an orphan goes on"
        time.sleep(0.05)
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob(".*.partial"))


def test_a_stage_that_people_start_outlives_their_shell(stage, tmp_path):
    (tmp_path / "dvc.py").write_text(_STARTER.replace('"DVC_STAGE": "train"', ""))
    starter = subprocess.Popen([sys.executable, tmp_path / "dvc.py", stage, tmp_path / "out"])
    pid = int(await_text(tmp_path / "pid"))
    starter.kill()
    starter.wait()
    time.sleep(1.5)
    assert is_running(pid)
    os.kill(pid, signal.SIGTERM)


def start(monkeypatch, main, *arguments):
    """Start a `main` of this file, which is then called a stage `test_launch`."""
    monkeypatch.setattr("pipeline.launch.stop_on_request", lambda: None)  # pytest is not to be stopped by it
    monkeypatch.setattr(sys, "argv", ["stage", *map(str, arguments)])
    run(main)


def read_note(folder, name):
    return json.loads((folder / name).read_text())


def test_a_stage_gets_paths_numbers_and_params_and_notes_its_seconds(monkeypatch, tmp_path):
    seen = []

    def main(out_file: Path, fold: int, params: Params) -> None:
        seen.append((out_file, fold, params.train.seed))
        time.sleep(0.2)

    arguments = ["--out-file", "a/b", "--fold", "2", "--params", ROOT / "params.yaml", "--journal", tmp_path / "notes"]
    start(monkeypatch, main, *arguments)
    assert seen == [(Path("a/b"), 2, 2018)]
    note = read_note(tmp_path / "notes", "test_launch.2.json")
    assert 0.2 <= note["seconds"] < 5
    assert note == {"seconds": note["seconds"], "loaded_too_s": note["seconds"]}


def test_what_a_stage_returns_is_noted_and_its_own_seconds_hold(monkeypatch, tmp_path):
    def main() -> dict[str, object]:
        return {"seconds": 1234.5, "epoch_seconds": [600.0, 1234.5]}

    start(monkeypatch, main, "--journal", tmp_path)
    note = read_note(tmp_path, "test_launch.json")
    assert note.pop("loaded_too_s") < 5
    assert note == {"seconds": 1234.5, "epoch_seconds": [600.0, 1234.5]}


def test_a_stage_that_is_given_the_journal_also_notes_in_it(monkeypatch, tmp_path):
    seen = []

    def main(journal: Path) -> None:
        seen.append(journal)

    start(monkeypatch, main, "--journal", tmp_path)
    assert seen == [tmp_path]
    assert (tmp_path / "test_launch.json").is_file()


def test_without_a_journal_nothing_is_noted_and_a_stage_that_fails_notes_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def succeed() -> None:
        pass

    def fail() -> None:
        raise InputError("mend this")

    start(monkeypatch, succeed)
    with pytest.raises(SystemExit, match="error: mend this"):
        start(monkeypatch, fail, "--journal", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_took_what_its_stages_took_together(tmp_path):
    for name, seconds in {
        "prepare": 1.25,
        "folds": 2,
        "predict_testset.main-0": 4,
        "submit": 100,
        "report": 100,
    }.items():
        write_json(tmp_path / f"{name}.json", {"seconds": seconds})
    for fold in (0, 1, 2):
        write_json(tmp_path / f"train.main-{fold}.json", {"seconds": 10.0, "epoch_seconds": [4.0, 10.0 + fold]})
        write_json(tmp_path / f"size.main-{fold}.json", {"seconds": 0.5})
    # Fold 2 is of an earlier run, `submit` and `report` come after what is timed, and `evaluate` has not run yet.
    epochs = {"main-0": [4.0, 10.0], "main-1": [4.0, 11.0]}
    assert read_journal(tmp_path, ["main"], [0, 1], [0]) == Journal(28.2, epochs)


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", "12.5", "{}", '{"seconds": "3"}', '{"seconds": null}', '{"seconds": true}'),
        *(
            '{"seconds": 1, "loaded_too_s": "2"}',
            '{"seconds": NaN}',
            '{"seconds": Infinity}',
            '{"seconds": 1, "epoch_seconds": 3}',
        ),
        '{"seconds": 1, "epoch_seconds": ["a"]}',
    ],
)
def test_an_entry_that_is_damaged_is_left_out(tmp_path, damage):
    write_json(tmp_path / "prepare.json", {"seconds": 2.0})
    (tmp_path / "train.main-0.json").write_text(damage)
    assert read_journal(tmp_path, ["main"], [0], [0]) == Journal(2.0, {})


def test_the_environment_decides_no_kernel(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"}
    settle_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    assert not {"ONEDNN_MAX_CPU_ISA", "OMP_WAIT_POLICY"} & os.environ.keys()


def test_a_stage_of_a_member_gets_its_parameters(monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.launch.stop_on_request", lambda: None)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["members"]["long"] = {"train.epochs": 77}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    seen = []

    def main(fold: int, params: Params) -> None:
        seen.append((fold, params.train.epochs, params.member_ids))

    words = ["--fold", "3", "--params", str(tmp_path / "params.yaml"), "--journal", str(tmp_path)]
    run(main, [*words, "--member", "long"])
    assert seen == [(3, 77, ("long",))]
    assert (tmp_path / "test_launch.long-3.json").is_file()
    with pytest.raises(SystemExit, match="no member is called short; `members` has long, main"):
        run(main, [*words, "--member", "short"])


def test_where_nothing_was_noted_nothing_is_known(tmp_path):
    assert read_journal(tmp_path / "none", ["main"], [0, 1], [0]) == Journal(None, {})


def test_loading_a_stage_counts_too(monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.launch.stop_on_request", lambda: None)

    def prepare() -> None:
        pass

    def train() -> dict[str, float]:
        return {"seconds": 40.0}

    for number, main in enumerate((prepare, train)):
        run(main, ["--journal", str(tmp_path / str(number))], 2.5)
    (short,), (long,) = (read_seconds(tmp_path / name).values() for name in "01")
    assert short == pytest.approx(2.5, abs=1)
    assert long == 40.0  # what a training took in all, stopped and gone on


def test_seconds_go_by_dvc_s_names(tmp_path):
    for name in ("prepare", "train.main-0", "predict_testset.11"):
        write_json(tmp_path / f"{name}.json", {"seconds": 2})
    (tmp_path / "folds.json").write_text("{")
    assert read_seconds(tmp_path) == {"prepare": 2, "train@main-0": 2, "predict_testset@11": 2}
    assert read_seconds(tmp_path / "none") == {}
