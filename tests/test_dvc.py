"""dvc.yaml: a stage depends on the code that it imports and the params that this reads; nothing more, nothing less."""

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.params import Params
from pipeline.provenance import ROOT, code_dependencies
from tests.dvc_deps import main as write_dependencies
from tests.dvc_deps import member_params
from tests.param_deps import NEVER, read_params

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_code_it_imports(name: str) -> None:
    listed = [dep for dep in STAGES[name]["deps"] if dep.startswith("pipeline/")]
    assert listed == [path.as_posix() for path in code_dependencies(f"pipeline.stages.{name}")], "run `make dvc-deps`"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_plain_command_that_gets_every_argument(name: str) -> None:
    module = import_module(f"pipeline.stages.{name}")
    words = STAGES[name]["cmd"].split()
    assert words[:4] == ["python", "-m", "pipeline.stages", name]
    given = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    of_launch = {"journal"} | ({"member"} & STAGES[name].get("matrix", {}).keys())
    assert given == set(module.main.__annotations__) - {"return"} | of_launch


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_exactly_the_params_that_its_code_reads(name: str) -> None:
    assert STAGES[name]["params"] == read_params(name) + member_params(STAGES[name]), "run `make dvc-deps`"


def test_the_run_card_shows_all_params_but_those_that_change_no_result() -> None:
    assert STAGES["submit"]["params"] == [name for name in Params.model_fields if name not in NEVER]


def test_what_is_written_into_dvc_yaml_is_derived_and_the_rest_stays(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "dvc.yaml").read_text()
    assert "pipeline/images/splits.py" in text
    damaged = text.replace("      - pipeline/images/splits.py\n", "").replace("params: [folds.ids]", "params: [train]")
    (tmp_path / "dvc.yaml").write_text(damaged)
    write_dependencies(tmp_path)
    written = (tmp_path / "dvc.yaml").read_text()
    assert yaml.safe_load(written) == yaml.safe_load(text)
    comments = [line for line in text.splitlines() if line.strip().startswith("#")]
    assert [line for line in written.splitlines() if line.strip().startswith("#")] == comments


# What an edit of a file runs again is what depends on it: one that means nothing to a stage must leave it alone.
@pytest.mark.parametrize(
    ("edited", "depend"),
    [
        ("kaggle/fetch.py", set()),
        ("kaggle/download.py", set()),
        ("nuclei/decoding.py", {"predict_oof", "predict_testset", "evaluate", "submit"}),
        ("unet/tiling.py", {"predict_oof", "predict_testset"}),
        ("unet/views.py", {"predict_oof", "predict_testset"}),
        ("unet/training.py", {"train"}),
        ("experiments/report.py", {"report"}),
        ("folds/watch.py", set()),
    ],
)
def test_an_edit_runs_again_what_it_can_change_and_no_more(edited: str, depend: set[str]) -> None:
    assert (ROOT / "pipeline" / edited).is_file()
    assert {name for name, stage in STAGES.items() if f"pipeline/{edited}" in stage["deps"]} == depend


def test_submit_depends_on_no_network() -> None:
    listed = {dep for dep in STAGES["submit"]["deps"] if dep.startswith("pipeline/unet/")}
    assert listed == {"pipeline/unet/prediction.py", "pipeline/unet/weights.py"}  # formats of files and of arrays


def test_dvc_reads_the_pipeline_and_chains_its_stages(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--dot"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if "not a git repository" in done.stderr or done.returncode:
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "dag", "--dot"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
    for edge in (
        '"prepare" -> "folds"',
        '"folds" -> "train@main-0"',
        '"train@main-0" -> "predict_oof@main-0"',
        '"predict_oof@main-2" -> "evaluate"',
        '"train@main-1" -> "predict_testset@main-0"',
        '"evaluate" -> "submit"',
        '"predict_testset@main-0" -> "submit"',
        '"submit" -> "report"',
    ):
        assert f"{edge};" in done.stdout
