"""Checkpoints to resume from: written so that a kill at any moment leaves a whole one.

In and out: a dict of tensors and plain values. A checkpoint lives in a folder of its own, named by a fingerprint of
everything that decides the result, so a changed parameter or data set never resumes from a stale one. Weights to
predict with are another matter: see `weights`.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.files import atomic_path, hold

_WAIT_S = 40.0


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Hold the folder for this process alone; it is made if it is missing, and the lock goes with the process.

    Another process that is about to end, as one whose machine is to be taken away, has some time to save its state.

    Raises:
        InputError: another process holds it.
    """
    with hold(folder / "lock", "another process trains this fold; wait for it, or stop it", _WAIT_S):
        yield folder


class Checkpoint:
    """The newest whole checkpoint of a folder, and the one before it until the newest is safe.

    A file is the SHA-256 of what follows it, in hex, a line end, and a state as torch writes it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._paths = [folder / "newest.pt", folder / "previous.pt"]

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` atomically with its digest; the checkpoint before it is kept until then, and after.

        Raises:
            InputError: the disk does not take it.
        """
        newest, previous = self._paths
        content = io.BytesIO()
        torch.save(state, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()
        with atomic_path(newest) as partial:
            with partial.open("wb") as file:
                file.write(f"{digest}\n".encode())
                file.write(content.getbuffer())
            # Only now, and before the new one takes its name: at no moment is there less than one whole checkpoint.
            if newest.exists():
                newest.replace(previous)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Return the newest checkpoint that its digest confirms, or None; a damaged one is named and set aside."""
        for path in self._paths:
            if not path.exists():
                continue
            digest, _, content = path.read_bytes().partition(b"\n")
            if digest.decode(errors="replace") == hashlib.sha256(content).hexdigest():
                return dict(torch.load(io.BytesIO(content), map_location=device, weights_only=True))
            aside = path.with_suffix(".damaged")
            print(f"{path}: damaged; set aside as {aside.name}", flush=True)
            path.replace(aside)
        return None

    def keep_newest(self) -> None:
        """Remove all but the newest checkpoint."""
        for path in self.folder.iterdir():
            if path != self._paths[0]:
                path.unlink()
