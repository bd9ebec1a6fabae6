"""How a stage ends: by itself, by an error, when it is asked to, and when the DVC that started it is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
