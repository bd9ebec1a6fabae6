"""`make gpu` without a GPU: every part runs to its end, and what fails is said and stops nothing else."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.compose import write_composed
from pipeline.errors import InputError
from pipeline.unet.weights import read_weights
from tests.gpu import __main__ as command
from tests.gpu import right, setting
from tests.gpu.good import choose_epochs
from tests.gpu.results import Results, Table

ROOT = Path(__file__).resolve().parents[2]


def test_params_are_the_composed_ones(tmp_path: Path) -> None:
    write_composed(tmp_path / "params.yaml", ["data=full", "train=gpu"])
    assert setting.PARAMS.read_text() == (tmp_path / "params.yaml").read_text(), "run `make params`"


def test_all_parts_run_to_their_end(tmp_path: Path) -> None:
    sizes = ["--device", "cpu", "--tiny", "--scratch", str(tmp_path), "--results", str(tmp_path / "results")]
    # DVC and Hydra are what a bare machine lacks: a folder of that name hides them.
    for name in ("dvc", "hydra", "omegaconf"):
        (tmp_path / "hidden" / name).mkdir(parents=True)
        (tmp_path / "hidden" / name / "__init__.py").write_text(f"raise ImportError('{name} is not to be used')")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", *sizes],
        cwd=ROOT,
        env={**command.os.environ, "PYTHONPATH": str(tmp_path / "hidden"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "results" / "results.json").read_text())["parts"]
    assert {part: len(found["tables"]) for part, found in parts.items()} == {"right": 4, "fast": 5, "good": 1 + 2 + 2}
    assert all(table["rows"] and not table["missed"] for found in parts.values() for table in found["tables"])
    text = (tmp_path / "results" / "results.md").read_text()
    assert "No GPU was at hand" in text
    # What a CPU goes on with.
    run = tmp_path / "run"
    ids = yaml.safe_load((run / "params.yaml").read_text())["folds"]["ids"]
    for fold in ids:
        tensors, metadata = read_weights(run / "weights" / "main" / f"{fold}.safetensors")
        assert {tensor.dtype for tensor in tensors.values() if tensor.ndim == 4 and len(tensor) > 1} == {torch.float16}
        assert metadata["fold"] == str(fold)
        assert (run / "sizes" / "main" / f"{fold}.safetensors").is_file()
        assert (run / "history" / "main" / f"{fold}.csv").is_file()


def test_what_fails_is_said_and_the_next_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Table:
        raise RuntimeError("out of paper")

    asked = [("why", fail), ("what", lambda: Table("What", ["a"], [["1"]]))]
    monkeypatch.setattr("tests.gpu.right.questions", lambda _: iter(asked))
    monkeypatch.setattr("tests.gpu.good.questions", lambda _: 1 / 0)
    results = Results(tmp_path, "head", "a device", ["right", "good"])
    assert not command.ask_part("right", None, results)
    assert not command.ask_part("good", None, results)
    assert results.missed == [
        "right: why: failed: RuntimeError: out of paper",
        "good: failed: ZeroDivisionError: division by zero",
    ]
    text = (tmp_path / "results.md").read_text()
    assert "**missed**: why: failed: RuntimeError: out of paper" in text
    assert "| 1 |" in text
    # Another part, later and elsewhere: what is known of these stays.
    later = Results(tmp_path, "head", "another device", ["fast"])
    later.add("fast", Table("Fast", ["b"], [["2"]]), 1.0)
    assert later.missed == []
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert [parts[name]["device"] for name in ("right", "good", "fast")] == ["a device", "a device", "another device"]


def test_an_error_of_cuda_s_own_ends_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Table:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    asked = [("why", fail), ("never", lambda: pytest.fail("asked"))]
    monkeypatch.setattr("tests.gpu.right.questions", lambda _: iter(asked))
    assert command.ask_part("right", None, Results(tmp_path, "", "", ["right"]))


@pytest.mark.parametrize(
    ("left_s", "other_s", "epoch_s", "epochs"),
    [(320.0, 10.0, 5.0, 10), (320.0, 50.0, 5.0, 2), (-40.0, 10.0, 5.0, 2), (1e6, 10.0, 5.0, 80)],
)
def test_epochs_are_those_that_the_folds_have_time_for(
    left_s: float, other_s: float, epoch_s: float, epochs: int
) -> None:
    assert choose_epochs(left_s, 5, other_s, epoch_s, 80) == epochs


@pytest.mark.parametrize(
    ("owner", "name", "what"),
    [
        (right, "encode_targets", "foreground and boundary"),
        (right, "cut_windows", "tiles cut from resident images"),
        (right, "paper_weight_map", "weight map"),
    ],
)
def test_what_the_device_computes_otherwise_is_missed(
    tiny: setting.Setting, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, what: str
) -> None:
    function, calls = getattr(owner, name), []

    def other(*arguments: Any) -> Any:
        calls.append(arguments)
        result = function(*arguments)
        return result if len(calls) % 2 else _add(result, 1)

    monkeypatch.setattr(owner, name, other)
    missed = right.compare_with_cpu(tiny).missed
    assert any(line.startswith(f"{what}: ") for line in missed), missed


def _add(result: Any, number: int) -> Any:
    return tuple(part + number for part in result) if isinstance(result, tuple) else result + number


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[setting.Setting]:
    threads = torch.get_num_threads()
    yield setting.make_setting("cpu", True, tmp_path_factory.mktemp("gpu"), 60)
    torch.set_num_threads(threads)


def test_without_cuda_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"no CUDA device; `--device cpu --tiny`"):
        setting.make_setting("cuda", False, tmp_path, 60)
    assert not list(tmp_path.iterdir())
