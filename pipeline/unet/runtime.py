"""Where and how torch runs: the section `runtime` goes in, and a `Runtime` that networks are run by comes out.

Everything comes from parameters and nothing from the environment: the number of threads decides the last bits of a sum.
"""

import ctypes
import sys
from dataclasses import dataclass

import torch

from pipeline.errors import InputError
from pipeline.params import RuntimeParams

# mallopt(3): M_TRIM_THRESHOLD, the free bytes that are kept; M_MMAP_MAX, how many blocks may lie outside the heap.
_KEEP_FREED = {-1: 2**31 - 1, -4: 0}


@dataclass(frozen=True)
class Runtime:
    """Where networks run, and how: in training as in prediction.

    Attributes:
        device: of the networks and their batches.
        precision: `bf16` runs convolutions in it, under autocast; `fp32` runs everything in float32.
        channels_last: the layout of image tensors. bf16 without it is a trap on a CPU, for upsampling above all
            (`make bench only=operators`).
    """

    device: torch.device
    precision: str
    channels_last: bool

    def autocast(self) -> torch.autocast:
        """Return a fresh context in which convolutions run in bf16, or, for `fp32`, one that changes nothing."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of networks and of image tensors."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def start_runtime(params: RuntimeParams) -> Runtime:
    """Set torch up as the section `runtime` says, and return where and how networks run.

    Raises:
        InputError: `cuda` is asked for and not there.
    """
    device = select_device(params.device)
    configure_torch(params.threads)
    return Runtime(device, params.precision, params.channels_last)


def select_device(name: str) -> torch.device:
    """Return the device for `auto` (CUDA if there is one), `cpu` or `cuda`.

    Raises:
        InputError: `cuda` is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device is cuda, and torch finds no CUDA device; set runtime.device to auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def configure_torch(threads: int) -> None:
    """Set the CPU threads of torch, fast matrix products, and keep freed memory within the process.

    By default glibc hands each large block back to the system and page-faults it in again (`make bench only=profile`
    measures what that costs a training step).
    """
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for option, value in _KEEP_FREED.items():
                libc.mallopt(option, value)
