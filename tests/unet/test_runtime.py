"""Where networks run: what is asked for and not there is refused, and a runtime is what the section says."""

import os
import subprocess
import sys

import pytest
import torch

from pipeline.compose import compose_params
from pipeline.errors import InputError
from pipeline.params import RuntimeParams
from pipeline.unet import runtime
from pipeline.unet.runtime import Runtime, select_device, select_precision, start_runtime


@pytest.fixture
def has_cuda(monkeypatch):
    """Return a function that says whether torch finds a CUDA device from here on."""
    return lambda found: monkeypatch.setattr(torch.cuda, "is_available", lambda: found)


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def runtime_params(**changes):
    return RuntimeParams(**({"device": "cpu", "threads": 1, "precision": "fp32", "channels_last": False} | changes))


def test_cuda_that_is_not_there_is_refused(has_cuda):
    has_cuda(False)
    message = r"^runtime\.device is cuda, and torch finds no CUDA device; set runtime\.device to auto or cpu$"
    with pytest.raises(InputError, match=message):
        start_runtime(runtime_params(device="cuda"))


@pytest.mark.parametrize(("found", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_one(has_cuda, found, device):
    has_cuda(found)
    assert select_device("auto").type == device
    assert select_device("cpu").type == "cpu"


def test_an_apple_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    message = r"^runtime\.device is mps, and torch finds no Apple GPU; set runtime\.device to auto or cpu$"
    with pytest.raises(InputError, match=message):
        start_runtime(runtime_params(device="mps"))


def test_an_apple_gpu_is_taken_with_a_warning_and_not_by_auto(monkeypatch, has_cuda, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    has_cuda(False)
    assert select_device("auto").type == "cpu"
    assert select_device("mps").type == "mps"
    assert "never tested" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "native", "precision"),
    [
        ("cuda", True, "bf16"),
        ("cuda", False, "fp16"),  # T4, P100
        ("mps", False, "fp16"),
        ("cpu", {"avx512_bf16": True}, "bf16"),
        ("cpu", {"amx_bf16": True}, "bf16"),
        ("cpu", {"bf16": True, "neon": True}, "bf16"),  # ARM
        ("cpu", {"avx512_f": True, "avx512_bf16": False, "architecture": "x86_64"}, "fp32"),
        ("cpu", {"avx2": True, "avx512_f": False, "architecture": "x86_64"}, "fp32"),
    ],
)
def test_auto_precision_is_what_the_device_has(monkeypatch, device, native, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: native)
    assert select_precision("auto", torch.device(device)) == precision
    assert select_precision("fp32", torch.device(device)) == "fp32"


def test_without_one_dnn_no_cpu_is_fast_in_bf16(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # a Mac's torch
    assert select_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("native", [True, False])
def test_bf16_that_is_asked_for_and_slow_is_taken_with_one_line(monkeypatch, capsys, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": native})
    runtime._warn_of_bf16.cache_clear()
    for _ in range(2):
        assert select_precision("bf16", torch.device("cpu")) == "bf16"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (0 if native else 1)
    assert all("fp32; set it to auto" in line for line in lines)


def test_the_default_is_auto():
    for overrides in ([], ["train=cpu"], ["train=gpu"]):
        assert compose_params(overrides).runtime.precision == "auto"


def test_a_runtime_is_what_the_section_says():
    made = start_runtime(runtime_params(threads=1, precision="bf16", channels_last=True))
    assert made == Runtime(torch.device("cpu"), "bf16", channels_last=True)
    assert made.memory_format is torch.channels_last
    assert start_runtime(runtime_params()).memory_format is torch.contiguous_format


@pytest.mark.parametrize(("threads", "other"), [(1, 2), (2, 1)])
def test_threads_come_from_the_section(threads, other):
    torch.set_num_threads(other)
    start_runtime(runtime_params(threads=threads))
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
@pytest.mark.parametrize(("variables", "is_kept"), [({}, True), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, False)])
def test_more_compiled_convolutions_are_kept_than_onednn_would(variables, is_kept):
    code = """
import torch
from pipeline.unet.runtime import configure_torch
configure_torch(1)
kernel = torch.ones(8, 8, 3, 3)
for length in range(3, 1200):
    torch.conv2d(torch.ones(2, 8, 3, length), kernel)
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
    torch.conv2d(torch.ones(2, 8, 3, 3), kernel)
"""
    environment = {name: value for name, value in os.environ.items() if "PRIMITIVE_CACHE" not in name} | variables
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    creations = [line for line in done.stdout.splitlines() if "create:" in line and ",convolution," in line]
    assert ["cache_hit" in line for line in creations] == [is_kept]


def test_cuda_is_held_to_the_same_bits_and_a_cpu_left_alone(monkeypatch):
    """On one GPU two trainings of a seed had other weights, while cuDNN chose its algorithms by timing them."""
    start_runtime(runtime_params())
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(runtime, "select_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(runtime, "select_precision", lambda *_: "bf16")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        runtime.start_runtime(runtime_params())
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_products_have_the_precision(precision, dtype):
    with Runtime(torch.device("cpu"), precision, channels_last=False).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
