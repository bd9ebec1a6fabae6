"""`pipeline run` on one machine: a fold that fails stops no other, a request to stop reaches all, one run at a time.

The stages are small programs here; DVC is the real one.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.cli import main
from pipeline.engine import processes
from pipeline.engine.processes import LOGS, held_checkout, repro, run_on_processes
from pipeline.engine.work import list_work
from pipeline.errors import InputError
from pipeline.params import load_params

ROOT = Path(__file__).resolve().parents[2]
# Writes what it is called to its own output; `train` of a fold first runs what the file `on0` and so on says.
STAGE = """
import sys
from pathlib import Path
name, out = sys.argv[1:]
extra = Path(f"on{out[-1]}")
if name == "train" and extra.exists():
    exec(extra.read_text())
if name == "predict_testset" and len([*Path("train").iterdir()]) < 3:
    sys.exit("error: a fold is missing")
Path(out).parent.mkdir(parents=True, exist_ok=True)
Path(out).write_text(name)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout of three folds and two shares."""
    (tmp_path / "data" / "sample").mkdir(parents=True)
    stages = {"folds": {"cmd": "python stage.py folds folds/folds.csv", "outs": ["folds/folds.csv"]}}
    for name, item, needs in (
        ("train", "fold", "folds/folds.csv"),
        ("size", "fold", "train/${item.fold}"),
        ("predict_oof", "fold", "size/${item.fold}"),
        ("predict_testset", "share", "train"),
    ):
        key = {"fold": "${folds.ids}", "share": "${data.test_shares}"}[item]
        out = f"{name}/${{item.{item}}}"
        stages[name] = {
            "matrix": {"member": "${member_ids}", item: key},
            "cmd": f"python stage.py {name} {out}",
            "deps": [needs],
            "outs": [out],
        }
    stages["submit"] = {
        "cmd": "python stage.py submit end",
        "deps": ["predict_testset", "predict_oof"],
        "outs": ["end"],
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["test_shares"], params["runtime"]["device"] = [0, 1], "cpu"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "stage.py").write_text(STAGE)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def run_all(jobs: int) -> None:
    params = load_params(Path("params.yaml"))
    run_on_processes(list_work(params.member_ids, params.folds, params.data), [{}] * jobs)


def test_all_is_brought_up_to_date_and_dvc_knows_it(folder):
    run_all(2)
    assert (folder / "end").read_text() == "submit"
    assert [(folder / "predict_testset" / name).read_text() for name in "01"] == ["predict_testset"] * 2
    assert sorted(path.name for path in LOGS.iterdir()) == [
        "fold-main-0.log", "fold-main-1.log", "fold-main-2.log", "share-main-0.log", "share-main-1.log",
    ]  # fmt: skip
    again = subprocess.run([sys.executable, "-m", "dvc", "repro"], capture_output=True, text=True, check=True)
    assert "Running" not in again.stdout


def test_one_share_is_left_to_dvc_s_last_run(folder, monkeypatch):
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["data"]["test_shares"] = [0]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    asked = []

    def note(*targets: str, handle: int) -> None:
        asked.append(targets)
        repro(*targets, handle=handle)

    monkeypatch.setattr("pipeline.engine.processes.repro", note)
    run_all(2)
    assert asked == [("folds",), ()]
    assert (folder / "end").read_text() == "submit"
    assert (folder / "predict_testset" / "0").read_text() == "predict_testset"


def test_a_fold_that_fails_stops_no_other_and_its_error_comes_last_in_full(folder):
    (folder / "on1").write_text("print('line', 1)\nprint('line', 2)\nsys.exit('error: mend this')")
    with pytest.raises(InputError) as caught:
        run_all(1)
    message = str(caught.value)
    assert message.startswith("fold main-1 failed (the others went on); its log, .resume/logs/fold-main-1.log:\n")
    assert "line 1\nline 2\nerror: mend this" in message
    assert not (folder / "train" / "1").exists()
    assert [(folder / "predict_oof" / name).is_file() for name in "012"] == [True, False, True]
    assert not (folder / "end").exists()
    (folder / "on1").unlink()
    run_all(1)  # the one fold that is left comes before the shares, which need it
    assert (folder / "end").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_every_fold_and_says_how_to_go_on(folder, number):
    wait = "import time\nPath('up{0}').touch()\ntry: time.sleep(60)\nexcept KeyboardInterrupt:\n"
    wait += "    Path('saved{0}').touch()\n    sys.exit(130)"
    for fold in "01":
        (folder / f"on{fold}").write_text(wait.format(fold))
    command = [sys.executable, "-m", "pipeline", "run", "--jobs", "2"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while not all((folder / f"up{fold}").exists() for fold in "01"):
        assert time.monotonic() < end
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    children = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, number)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130
    assert told.splitlines()[-1].endswith("stopped; every fold has saved where it was: run the same command to go on")
    assert all((folder / f"saved{fold}").exists() for fold in "01")
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    for fold in "01":
        (folder / f"on{fold}").unlink()
    run_all(2)
    assert (folder / "end").exists()


@pytest.mark.parametrize("command", [["run"], ["template", "slurm"]])
def test_a_folder_of_archives_that_is_not_there_is_named_with_what_fetches_them(folder, command):
    Path("data/sample").rmdir()
    with pytest.raises(SystemExit, match=r"error: data/sample: no such folder; `python -m pipeline fetch fixes`"):
        main(command)


def test_a_test_set_is_not_handed_to_a_queue_before_its_folds_are_done(folder, capfd, monkeypatch):
    monkeypatch.setattr(processes, "take_finished", lambda _storage, _work, items: [*items])
    with pytest.raises(
        SystemExit, match=r"error: folds main-0, main-1, main-2 are not finished, and the test set is predicted by all"
    ):
        main(["template", "slurm", "testset"])
    assert capfd.readouterr().out == ""
    assert not (folder / "train").exists()


def test_one_run_at_a_time(folder, monkeypatch):
    monkeypatch.setattr("pipeline.engine.processes._GRACE_S", 0.2)
    with held_checkout(), pytest.raises(InputError, match=r"another run is at work in this checkout; wait for it"):
        run_all(1)
    run_all(1)
    assert (folder / "end").exists()
