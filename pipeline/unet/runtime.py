"""Where and how torch runs: device, threads, memory allocator, precision. Everything from parameters, nothing from
the environment, since the number of threads decides the last bits of a sum."""

import ctypes
import sys

import torch

from pipeline.errors import InputError

# mallopt(3): M_TRIM_THRESHOLD, the free bytes that are kept; M_MMAP_MAX, how many blocks may lie outside the heap.
_KEEP_FREED = {-1: 2**31 - 1, -4: 0}


def select_device(name: str) -> torch.device:
    """Return the device for `auto` (CUDA if there is one), `cpu` or `cuda`.

    Raises:
        InputError: `cuda` is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device is cuda, and torch finds no CUDA device; set train.device to auto or cpu")
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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a fresh context in which convolutions run in bf16, or, for `fp32`, one that changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the layout of image tensors.

    bf16 without channels_last is a trap on a CPU, for upsampling above all (`make bench only=operators`).
    """
    return torch.channels_last if channels_last else torch.contiguous_format
