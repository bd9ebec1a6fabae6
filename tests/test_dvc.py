"""dvc.yaml: the stages' dependencies follow their imports, and nothing is forgotten or invented."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from code_deps import ROOT, code_dependencies

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_code_it_imports(name: str) -> None:
    listed = [dep for dep in STAGES[name]["deps"] if dep.startswith("pipeline/")]
    assert listed == code_dependencies(name), "run `make dvc-deps`"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_plain_command_that_gets_every_argument(name: str) -> None:
    module = import_module(f"pipeline.stages.{name}")
    words = STAGES[name]["cmd"].split()
    assert words[:3] == ["python", "-m", f"pipeline.stages.{name}"]
    given = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    assert given == set(module.main.__annotations__) - {"return"} | {"journal"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_parameters_its_code_reads(name: str) -> None:
    """Every `params.SECTION` that a stage names is declared, unless it only decides the speed."""
    declared = STAGES[name]["params"]
    read = set(re.findall(r"\bparams\.(\w+(?:\.\w+)?)", (ROOT / "pipeline" / "stages" / f"{name}.py").read_text()))
    for key in read:
        if key == "decode.workers" or key.startswith("housekeeping"):
            continue
        assert any(key == name or key.startswith(name + ".") or name.startswith(key) for name in declared), key


def test_an_edit_to_decoding_retrains_no_fold() -> None:
    for name in ("prepare", "folds", "train", "predict_oof", "predict_test"):
        assert "pipeline/nuclei/decoding.py" not in STAGES[name]["deps"]
    assert "pipeline/nuclei/decoding.py" in STAGES["evaluate"]["deps"]


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
        '"folds" -> "train@0"',
        '"train@0" -> "predict_oof@0"',
        '"predict_oof@2" -> "evaluate"',
        '"train@1" -> "predict_test"',
        '"evaluate" -> "submit"',
        '"predict_test" -> "submit"',
        '"submit" -> "report"',
    ):
        assert f"{edge};" in done.stdout
