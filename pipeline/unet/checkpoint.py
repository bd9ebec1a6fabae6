"""Checkpoints to resume from: written so that a kill at any moment leaves a whole one.

In and out: a dict of tensors and plain values. A checkpoint lives in a folder of its own, named by a fingerprint of
everything that decides the result, so a changed parameter or data set never resumes from a stale one. Weights to
predict with are another matter: see `weights`.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.files import atomic_path, sha256_of, write_text


def fingerprint(parts: dict[str, Any]) -> str:
    """Return a digest (16 hex digits) of JSON-like `parts`, the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Hold the folder for this process alone; it is made if it is missing, and the lock goes with the process.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{folder}: another process trains this fold; wait for it, or stop it") from error
        yield folder


class Checkpoint:
    """The newest whole checkpoint of a folder, and the one before it until the newest is safe."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / "newest.pt", folder / "previous.pt"]

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` atomically with its digest, and keep the checkpoint before it."""
        newest, previous = self._paths
        if newest.exists():
            _digest_path(newest).replace(_digest_path(previous))
            newest.replace(previous)
        with atomic_path(newest) as partial:
            torch.save(state, partial)
            digest = sha256_of(partial)
        write_text(_digest_path(newest), digest)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Return the newest checkpoint that its digest confirms, or None; a damaged one is named and set aside."""
        for path in self._paths:
            if not path.exists():
                continue
            digest = _digest_path(path)
            if digest.exists() and digest.read_text() == sha256_of(path):
                return dict(torch.load(path, map_location=device, weights_only=True))
            aside = path.with_suffix(".damaged")
            print(f"{path}: damaged; set aside as {aside.name}", flush=True)
            path.replace(aside)
        return None


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")
