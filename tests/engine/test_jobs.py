"""Jobs: as many at a time as there are places, none stopped by another's failure, all of them by a request to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.engine.jobs import Job, last_line, read_log, run_alone, run_side_by_side

ROOT = Path(__file__).resolve().parents[2]


def make_job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / "logs" / f"{name}.log")


def await_files(*paths: Path) -> None:
    end = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_jobs_run_beside_one_another(tmp_path):
    """Each waits for the other's file, so one after the other they would wait for ever."""
    code = "import time\nfrom pathlib import Path\nPath({own!r}).touch()\n"
    code += "while not Path({other!r}).exists(): time.sleep(0.01)"
    files = [str(tmp_path / name) for name in "ab"]
    jobs = [make_job(tmp_path, own[-1], code.format(own=own, other=other)) for own, other in (files, files[::-1])]
    assert run_side_by_side(jobs, [{}, {}], "jobs") == []


def test_no_more_run_at_a_time_than_there_are_places(tmp_path):
    """Each fails where it finds another's file."""
    code = (
        "import pathlib, sys, time\nfolder = pathlib.Path({folder!r}) / 'running'\nfolder.mkdir()\ntime.sleep(0.3)\n"
        "folder.rmdir()"
    )
    jobs = [make_job(tmp_path, name, code.format(folder=str(tmp_path))) for name in "abc"]
    assert run_side_by_side(jobs, [{}], "jobs") == []


def test_a_job_that_fails_stops_no_other_and_its_log_says_why(tmp_path, capsys):
    jobs = [
        make_job(tmp_path, "a", "import sys; print('out', flush=True); sys.exit('no room')"),
        make_job(tmp_path, "b", "import time; time.sleep(0.5); print('done')"),
    ]
    assert run_side_by_side(jobs, [{}, {}], "jobs") == jobs[:1]
    assert jobs[0].log.read_text() == "out\nno room\n"
    assert jobs[1].log.read_text() == "done\n"
    shown = capsys.readouterr().err
    assert "a: failed" in shown
    assert "b: done" in shown


def test_a_job_has_what_its_place_changes(tmp_path):
    job = make_job(tmp_path, "a", "import os; print(os.environ['PLACE'])")
    run_side_by_side([job], [{"PLACE": "7"}], "jobs")
    assert job.log.read_text() == "7\n"


@pytest.mark.parametrize(
    ("text", "line"), [(b"a\nb\n", "b"), (b"10%\r20%\r", "20%"), (b"", ""), (b"\n\n", ""), (b"\xff\n", "\ufffd")]
)
def test_the_last_line_of_a_log_is_what_a_bar_shows_now(tmp_path, text, line):
    job = make_job(tmp_path, "a", "")
    job.log.parent.mkdir()
    job.log.write_bytes(text)
    assert job.last_line() == line


@pytest.mark.parametrize(
    ("code", "status"), [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_a_job_alone_ends_in_its_status(code, status):
    assert run_alone(Job("a", (sys.executable, "-c", code), None), {}) == status


def test_what_a_bar_has_overwritten_is_left_out(tmp_path):
    (tmp_path / "log").write_bytes(b"a:  0%\ra: 50%\ra: 100%\nerror: b\n")
    assert read_log(tmp_path / "log") == "a: 100%\nerror: b"
    assert read_log(tmp_path / "none") == last_line(tmp_path / "none") == ""


RUNNER = """
import sys
from pathlib import Path
from pipeline.engine.jobs import Job, run_side_by_side
from pipeline.launch import stop_on_request

stop_on_request()
folder = Path(sys.argv[1])
code = '''
import os, pathlib, time
folder = pathlib.Path({folder!r})
(folder / "{name}.pid").write_text(str(os.getpid()))
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    (folder / "{name}.saved").write_text("1")
'''
jobs = [Job(n, (sys.executable, "-c", code.format(folder=str(folder), name=n)), folder / f"{n}.log") for n in "ab"]
run_side_by_side(jobs, [{}, {}], "jobs")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_lets_every_job_save(tmp_path, number):
    (tmp_path / "runner.py").write_text(RUNNER)
    runner = subprocess.Popen(
        [sys.executable, tmp_path / "runner.py", tmp_path], cwd=ROOT, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    await_files(tmp_path / "a.pid", tmp_path / "b.pid")
    runner.send_signal(number)
    assert runner.wait(30) != 0
    assert (tmp_path / "a.saved").exists()
    assert (tmp_path / "b.saved").exists()
