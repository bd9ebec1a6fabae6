"""Files that are either whole or not there: atomic writes and digests."""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.progress import say

_LOOK_S = 0.2
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]  # some file systems lock on one machine alone
_LITTER = ("Thumbs.db", "desktop.ini")
# A full disk, a quota, a limit of the file's size, a disk or folder that is read-only.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any error removed.

    The folder of `path` is made if it is missing. Readers see the old file or the new, never half of one. What a killed
    process left behind for this path is removed.

    Raises:
        InputError: the disk does not take the file; the old one is as it was.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, make_folder=False) as partial:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.chmod(0o644)  # others may read it now that it is whole
            partial.replace(path)
            _sync_folder(path.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; on success it replaces `folder`, on any error it is removed.

    A kill between the two renames that this takes leaves none, never half of one.

    Raises:
        InputError: the disk does not take the folder; the old one is as it was.
    """
    with _explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(folder, make_folder=True) as partial:
            partial.chmod(0o755)
            yield partial
            if folder.exists():
                with _temporary(folder, make_folder=True) as old:
                    kept = old / folder.name
                    try:
                        folder.replace(kept)
                        partial.replace(folder)
                    except BaseException:
                        if not folder.exists():
                            kept.replace(folder)
                        raise
            else:
                partial.replace(folder)
            _sync_folder(folder.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which is gone afterwards; what a killed process left is removed."""
    with _explained(path), _temporary(path, make_folder=True) as partial:
        yield partial


@contextmanager
def _temporary(path: Path, make_folder: bool) -> Iterator[Path]:
    """Yield a new file or folder beside `path`, locked for as long as this process works on it, and remove it after.

    It has the first number that no other process of this machine works on. The lock goes with the process: what a
    killed one left under that number is emptied and taken, and under those that follow removed, where locks are known.
    The folder is never listed, which would take long where it holds many results.
    """
    numbered = (path.with_name(f".{path.name}.{_HOST}.{number}.partial") for number in itertools.count())
    claims = ((partial, _claim(partial, make_folder)) for partial in numbered)
    partial, handle = next((partial, handle) for partial, handle in claims if handle is not None)
    try:
        for left in itertools.takewhile(os.path.lexists, numbered):
            _let_go(left, _claim(left, make_folder))
        yield partial
    finally:
        _let_go(partial, handle)


def _let_go(partial: Path, handle: int | None) -> None:
    """Remove what was claimed, unless it has got its name: then another process may have taken the number."""
    if handle is not None:
        if _is_open_as(handle, partial):
            _remove(partial)
        os.close(handle)


def _claim(partial: Path, make_folder: bool) -> int | None:
    """Make `partial`, empty, and return its locked handle; None where it is there and not to be had.

    Then another process works on it, or it is another user's, or of another kind.
    """
    while True:
        try:
            if make_folder:
                partial.mkdir(0o700)
            else:
                os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            is_new = True
        except FileExistsError:
            is_new = False
        try:
            handle = os.open(partial, os.O_NOFOLLOW | (os.O_DIRECTORY if make_folder else os.O_RDWR))
        except FileNotFoundError:  # another process has ended with it meanwhile
            continue
        except OSError:
            if is_new:
                raise
            return None
        try:
            is_free = _take(handle)
        except OSError:  # a file system that knows no locks: what is new is nobody else's
            is_free = is_new
        is_there = _is_open_as(handle, partial)
        if is_free and is_there and _empty(handle, partial):
            return handle
        os.close(handle)
        if not is_free or is_there:
            return None


def _empty(handle: int, partial: Path) -> bool:
    """Empty an open file or folder, and return whether that went well."""
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            os.ftruncate(handle, 0)
            return True
        for left in partial.iterdir():
            _remove(left)
        return not any(partial.iterdir())
    except OSError:
        return False


def _is_open_as(handle: int, path: Path) -> bool:
    """Whether the open file or folder still is what lies at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what a disk says that takes no more into one error that names `path`."""
    try:
        yield
    except OSError as error:
        # What names another file is about reading that.
        is_here = error.filename is None or Path(os.fsdecode(error.filename)).absolute().is_relative_to(
            path.parent.absolute()
        )
        if error.errno not in _NO_ROOM or not is_here:
            raise
        raise InputError(
            f"{path}: cannot be written ({os.strerror(error.errno)}); make room, or make its folder writable, and run "
            "the same command again; what was there before is as it was"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8 with `\\n` line ends."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` atomically, as indented JSON that ends in a newline."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Raises:
        InputError: the file is missing, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); `dvc repro` writes it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: no JSON object; `dvc repro` writes it again")
    return content


def digest_archive(path: Path) -> str:
    """Return the SHA-256, in hex, of a file; of a folder that of the names and contents of all files in it.

    The place of the folder, the times of its files, and litter in it change nothing; of a linked file it is the
    content. Linked folders are not looked into: the layouts refuse them.
    """
    if not path.is_dir():
        return sha256_of(path)
    inside = ((file, file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    files = {name.as_posix(): file for file, name in inside if not any(map(is_litter, name.parts))}
    lines = [f"{sha256_of(files[name])}  {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def is_litter(name: str) -> bool:
    """Return whether a file or folder of that name is hidden, or is what file managers leave behind."""
    return name.startswith(".") or name in _LITTER


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, in hex; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def hold(path: Path, refusal: str, wait_s: float) -> Iterator[int]:
    """Hold the file `path`, which is made if it is missing, and yield its handle: who inherits that holds it too.

    A file system that knows no locks lets everyone in.

    Args:
        path: of the file.
        refusal: the error where another process holds it.
        wait_s: for how long it may.

    Raises:
        InputError: it does so for longer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end, told = time.monotonic() + wait_s, False
        with suppress(OSError):
            while not _take(handle):
                if time.monotonic() > end:
                    raise InputError(f"{path}: {refusal}")
                if not told:
                    say(f"{path}: waits for another process to let go of it")
                    told = True
                time.sleep(_LOOK_S)
        yield handle
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
