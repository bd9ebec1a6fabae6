"""Where and how torch runs: the section `runtime` goes in, and a `Runtime` that networks are run by comes out.

Everything comes from parameters and nothing from the environment: the number of threads decides the last bits of a sum.
The environment is written to where a library asks for it.
"""

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache

import torch

from pipeline.errors import InputError
from pipeline.params import RuntimeParams

# What x86 CPUs (two ways) and ARM CPUs that compute in bf16 have, as torch calls it.
_CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
# mallopt(3): M_TRIM_THRESHOLD, the free bytes that are kept; M_MMAP_MAX, how many blocks may lie outside the heap.
_KEEP_FREED = {-1: 2**31 - 1, -4: 0}
# How many compiled convolutions oneDNN keeps, of 45 KB each. A network has some sixty for each shape of image; its own
# 1024 are full after eighteen shapes, and images of a hundred sizes and four zooms have eighty.
_COMPILED = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")


@dataclass(frozen=True)
class Runtime:
    """Where networks run, and how: in training as in prediction.

    Attributes:
        device: of the networks and their batches.
        precision: `bf16` and `fp16` run convolutions in it, under autocast; `fp32` runs everything in float32.
        channels_last: the layout of image tensors. bf16 without it is a trap on a CPU, for upsampling above all
            (`make bench only=operators`).
    """

    device: torch.device
    precision: str
    channels_last: bool

    def autocast(self) -> torch.autocast:
        """Return a fresh context in which convolutions run in the precision; for `fp32` it changes nothing."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """Return what keeps small gradients from vanishing in fp16; in another precision it changes nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of networks and of image tensors."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def start_runtime(params: RuntimeParams) -> Runtime:
    """Set torch up as the section `runtime` says, and return where and how networks run.

    Raises:
        InputError: `cuda` or `mps` is asked for and not there.
    """
    device = select_device(params.device)
    configure_torch(params.threads)
    if device.type == "cuda":
        _repeat_bits()
    return Runtime(device, select_precision(params.precision, device), params.channels_last)


def _repeat_bits() -> None:
    """Let CUDA compute the same bits in every run: no algorithm that adds up in any order, none chosen by timing.

    That is as far as torch has such algorithms; of an operator that has none it warns, as of `unet.upsampling` bicubic.
    Left to time its algorithms, cuDNN gave two trainings of one seed other weights (tests/gpu/results.md). cuBLAS reads
    its variable when it is first used.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def select_device(name: str) -> torch.device:
    """Return the device for `auto` (CUDA if there is one, else the CPU), `cpu`, `cuda` or `mps`.

    Raises:
        InputError: `cuda` or `mps` is asked for and not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device is cuda, and torch finds no CUDA device; set runtime.device to auto or cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("runtime.device is mps, and torch finds no Apple GPU; set runtime.device to auto or cpu")
        _warn_of_mps()
    return torch.device(name)


@cache
def _warn_of_mps() -> None:
    print("runtime.device is mps, on which this pipeline was never tested; look twice at its results", flush=True)


def select_precision(name: str, device: torch.device) -> str:
    """Return the precision for `auto`, or `name` itself: a matter of what the device has, not of what proves fast.

    `auto` is bf16 where the device computes in it, fp16 on other GPUs, and fp32 on other CPUs. Those imitate bf16, and
    a step takes twice as long as in float32 on AVX-512, ten times on what is older (held to by ONEDNN_MAX_CPU_ISA).
    """
    native = _native_precision(device)
    if name == "bf16" and native != name:
        _warn_of_bf16(native)
    return native if name == "auto" else name


def _native_precision(device: torch.device) -> str:
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        is_native = torch.backends.mkldnn.is_available() and any(capabilities.get(name) for name in _CPU_BF16)
        return "bf16" if is_native else "fp32"
    is_native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if is_native else "fp16"


@cache
def _warn_of_bf16(native: str) -> None:
    print(
        f"runtime.precision is bf16, which this device imitates at a half to a tenth of the speed of {native}; "
        "set it to auto",
        flush=True,
    )


def configure_torch(threads: int) -> None:
    """Set the CPU threads of torch, fast matrix products, and keep freed memory and compiled convolutions.

    By default glibc hands each large block back to the system and page-faults it in again, and oneDNN compiles anew
    what it has no room for. `make bench only=profile` measures what that costs. oneDNN reads its variable when it first
    compiles; one that is set already stands.
    """
    os.environ.setdefault(*_COMPILED)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for option, value in _KEEP_FREED.items():
                libc.mallopt(option, value)
