"""How many folds a machine has room for: by cores, by memory, by GPUs, or as many as were asked for."""

from types import SimpleNamespace

import pytest

from pipeline.engine import machine
from pipeline.engine.machine import find_places, list_gpus
from pipeline.params import RuntimeParams

GIB = 2**30


def runtime(threads: int = 2, device: str = "cpu") -> RuntimeParams:
    return RuntimeParams(device=device, threads=threads, precision="auto", channels_last=True)


@pytest.fixture
def make_machine(monkeypatch):
    def make(cores: int, gib: float, gpus: str | None = "") -> None:
        monkeypatch.setattr(machine, "find_cores", lambda: cores)
        monkeypatch.setattr(machine, "find_memory", lambda: round(gib * GIB))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)

    return make


@pytest.mark.parametrize(
    ("cores", "gib", "threads", "folds"),
    [(2, 24, 2, 1), (2, 24, 1, 2), (16, 128, 2, 8), (16, 9, 2, 2), (1, 24, 2, 1), (16, 1, 1, 1), (5, 64, 2, 2)],
)
def test_folds_fit_by_cores_and_by_memory_and_one_always_does(make_machine, cores, gib, threads, folds):
    make_machine(cores, gib)
    assert find_places(runtime(threads)) == [{}] * folds


def test_as_many_as_are_asked_for(make_machine):
    make_machine(2, 24)
    assert find_places(runtime(), 5) == [{}] * 5


def test_a_fold_for_each_gpu_and_more_share_them(make_machine):
    make_machine(2, 1, "3, 5")
    assert find_places(runtime(device="auto")) == [{"CUDA_VISIBLE_DEVICES": name} for name in ("3", "5")]
    assert find_places(runtime(device="cuda"), 3) == [{"CUDA_VISIBLE_DEVICES": name} for name in ("3", "5", "3")]


def test_what_runs_on_the_cpu_looks_for_no_gpu(make_machine):
    make_machine(4, 24, "0,1")
    assert find_places(runtime(device="cpu")) == [{}, {}]


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("6400000 100000", 8), (None, 8)]
)
def test_cores_are_those_that_a_container_is_given(monkeypatch, tmp_path, limit, cores):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_CORES", tmp_path / "cpu.max")
    if limit:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert machine.find_cores() == cores


@pytest.mark.parametrize(("limit", "gib"), [("max", 9), (str(5 * GIB), 4), (str(50 * GIB), 9), (None, 9)])
def test_memory_is_that_which_a_container_has_left(monkeypatch, tmp_path, limit, gib):
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=9 * GIB))
    for name, text in (("_LIMIT", limit), ("_TAKEN", str(GIB))):
        monkeypatch.setattr(machine, name, tmp_path / name)
        if text:
            (tmp_path / name).write_text(f"{text}\n")
    assert machine.find_memory() == gib * GIB


@pytest.mark.parametrize(
    ("named", "found"), [("", []), ("-1", []), ("0", ["0"]), ("GPU-8a1c,GPU-77", ["GPU-8a1c", "GPU-77"])]
)
def test_gpus_that_the_environment_leaves(monkeypatch, named, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert list_gpus() == found


@pytest.mark.parametrize(
    ("program", "found"), [("printf '0\\n1\\n'", ["0", "1"]), ("echo 'no driver'; exit 9", []), (None, [])]
)
def test_all_gpus_of_the_machine_where_the_environment_names_none(monkeypatch, tmp_path, program, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if program:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{program}\n")
        tool.chmod(0o755)
    assert list_gpus() == found
