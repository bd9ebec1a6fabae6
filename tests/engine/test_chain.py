"""The stages of a fold as one job: what dvc.yaml says, each once, and only where results would be the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine import chain as chain_module
from pipeline.engine.chain import (
    ENVIRONMENT,
    check_environment,
    find_runtime,
    is_done,
    read_chain,
    run_chain,
)
from pipeline.errors import InputError
from pipeline.files import write_json
from pipeline.provenance import describe_environment
from tests.engine.items import FOLD, SHARE

ROOT = Path(__file__).resolve().parents[2]


def test_a_chain_is_what_dvc_yaml_says_of_a_fold():
    chain = read_chain(ROOT, FOLD, "main-3")
    assert [stage.name for stage in chain] == ["train", "size", "predict_oof"]
    assert chain[0].words[:3] == ["-m", "pipeline.stages", "train"]
    assert [chain[0].words[chain[0].words.index(name) + 1] for name in ("--member", "--fold")] == ["main", "3"]
    assert chain[0].outs == [Path("folds/weights/main/3.safetensors"), Path("folds/history/main/3.csv")]
    assert chain[2].outs == [Path("folds/oof/main/3.npz")]
    assert not any("$" in word for stage in chain for word in stage.words)
    (share,) = read_chain(ROOT, SHARE, "main-2")
    assert (share.name, share.outs) == ("predict_testset", [Path("submissions/probabilities/main/2.npz")])


def test_a_value_of_params_in_a_stage_is_refused(tmp_path):
    text = (ROOT / "dvc.yaml").read_text().replace("--resume .resume", "--resume ${data.dir}")
    (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(InputError, match=r"dvc\.yaml: \$\{data\.dir\} in a stage of each fold"):
        read_chain(tmp_path, FOLD, "main-0")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose stages write their name, but `size` where a file `broken` is."""
    code = "import pathlib, sys; sys.exit('odd') if pathlib.Path('broken').exists() and '{0}' == 'size' else None; "
    code += "path = pathlib.Path('{1}'); path.parent.mkdir(exist_ok=True); path.write_text('{0}'); "
    code += "pathlib.Path('runs').open('a').write('{0} ')"
    lines = ["stages:"]
    for stage in ("train", "size", "predict_oof"):
        out = f"{stage}/${{item.fold}}"
        lines += [f"  {stage}:", f'    cmd: python -c "{code.format(stage, out)}"', f"    outs: [{out!r}]"]
    (tmp_path / "dvc.yaml").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chain_module, "find_runtime", lambda: {"device": "cpu", "precision": "fp32", "kind": "AVX2"})
    write_json(ENVIRONMENT, describe_environment())
    return tmp_path


def test_stages_run_once(folder):
    assert run_chain(FOLD, "main-1") == run_chain(FOLD, "main-1") == 0
    assert (folder / "runs").read_text() == "train size predict_oof "
    assert (folder / "size" / "1").read_text() == "size"
    assert all(is_done(folder, stage) for stage in read_chain(folder, FOLD, "main-1"))
    assert not any(is_done(folder, stage) for stage in read_chain(folder, FOLD, "main-0"))


def test_after_a_stage_that_fails_the_rest_follows_another_time(folder):
    (folder / "broken").touch()
    assert run_chain(FOLD, "main-0") == 1
    (folder / "broken").unlink()
    run_chain(FOLD, "main-0")
    assert (folder / "runs").read_text() == "train size predict_oof "


@pytest.mark.parametrize("harm", ["result changed", "result gone", "marker cut"])
def test_a_stage_whose_result_is_not_whole_runs_again(folder, harm):
    run_chain(FOLD, "main-0")
    if harm == "marker cut":
        marker = read_chain(folder, FOLD, "main-0")[1].marker
        marker.write_text(marker.read_text()[:9])
    elif harm == "result gone":
        (folder / "size" / "0").unlink()
    else:
        (folder / "size" / "0").write_text("siz")
    assert [is_done(folder, stage) for stage in read_chain(folder, FOLD, "main-0")] == [True, False, True]
    run_chain(FOLD, "main-0")
    assert (folder / "runs").read_text() == "train size predict_oof size "


def test_a_machine_that_would_make_other_bytes_is_refused(folder, monkeypatch):
    check_environment(folder)
    write_json(folder / ENVIRONMENT, describe_environment() | {"torch": "1.0", "python": "2.7"})
    with pytest.raises(InputError, match=r"has python 3\.\d+ in place of 2\.7, torch \S+ in place of 1\.0: its"):
        run_chain(FOLD, "main-0")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("code", "status"), [("sys.exit(130)", 130), ("os.kill(os.getpid(), 9)", 137)])
def test_a_stage_that_was_ended_from_outside_tells(folder, code, status):
    text = (folder / "dvc.yaml").read_text().replace("import pathlib, sys;", "import os, pathlib, sys;")
    (folder / "dvc.yaml").write_text(text.replace("sys.exit('odd')", code))
    (folder / "broken").touch()
    assert run_chain(FOLD, "main-0") == status


def test_a_checkout_is_no_place_for_a_single_fold(folder):
    ENVIRONMENT.unlink()
    with pytest.raises(InputError, match=r"^environment\.json: not here; --fold is for a folder that `template`"):
        run_chain(FOLD, "main-0")


def test_a_machine_of_another_kind_is_refused(folder, monkeypatch):
    run_chain(FOLD, "main-0")
    monkeypatch.setattr(chain_module, "find_runtime", lambda: {"device": "cuda", "precision": "bf16", "kind": "H200"})
    with pytest.raises(
        InputError, match=r"runs networks on cuda, bf16, H200, and the first machine did on cpu, fp32, AVX2"
    ):
        run_chain(FOLD, "main-1")


def test_what_networks_run_on_is_found_without_loading_torch_here(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("device: auto", "device: cpu"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = find_runtime()
    assert (found["device"], found["precision"] in ("bf16", "fp32")) == ("cpu", True)
    (tmp_path / "params.yaml").write_text("no: params")
    with pytest.raises(InputError, match="no place to run networks"):
        find_runtime()


def test_the_command_is_one_line_where_it_fails(folder):
    write_json(folder / ENVIRONMENT, describe_environment() | {"torch": "1.0"})
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    command = [sys.executable, "-m", "pipeline", "run", "--fold", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert chain_module.MARKERS.exists() is False
