"""How many folds one machine has room for.

In: the section `runtime` and what the machine has. Out: a place for each fold that can run at a time, with what it
changes in the environment. Folds come out the same wherever they run, so nothing here decides a result.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from pipeline.params import RuntimeParams

# The training of a fold of the full data took 3.1 GiB at its most; `make bench only=folds` measures its steps.
_FOLD_BYTES = 4 * 2**30
# What a container may take, and takes (cgroup v2).
_CORES = Path("/sys/fs/cgroup/cpu.max")
_LIMIT, _TAKEN = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")

# What a place changes in the environment.
Place = Mapping[str, str]


def find_places(runtime: RuntimeParams, jobs: int | None = None) -> list[Place]:
    """Return the places for `jobs` folds at a time; None for as many as fit, but one at least.

    With CUDA that is one for each GPU that `CUDA_VISIBLE_DEVICES` leaves; else as many as have cores of their own, of
    which each takes `runtime.threads`, and memory.
    """
    gpus = list_gpus() if runtime.device in ("auto", "cuda") else []
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(jobs or len(gpus))]
    by_cores = find_cores() // runtime.threads
    by_memory = find_memory() // _FOLD_BYTES
    return [{} for _ in range(jobs or max(1, min(by_cores, by_memory)))]


def find_cores() -> int:
    """Return how many cores this process may use: those of the machine, or what its container is given of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _CORES.read_text().split())
        return max(1, min(cores, quota // period))
    except (OSError, ValueError):  # no container, or one without a limit, which says `max`
        return cores


def find_memory() -> int:
    """Return the bytes of memory that are free for this process: the machine's, or its container's."""
    free = psutil.virtual_memory().available
    try:
        return min(free, int(_LIMIT.read_text()) - int(_TAKEN.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit, which says `max`
        return free


def list_gpus() -> list[str]:
    """Return what CUDA calls the GPUs that this process may use: their numbers, or their UUIDs; none without a driver.

    It starts no CUDA, which would hold memory on the first of them.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in (part.strip() for part in named.split(",")) if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run([*command], capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else []
