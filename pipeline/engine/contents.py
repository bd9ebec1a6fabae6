"""Files by their content: DVC's cache has what a run made, and its remote where one is configured.

In: dvc.lock, and a table of contents that a kept run has. Out: that table; and files, brought back.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.engine.checkout import dvc_environment
from pipeline.errors import InputError, shorten
from pipeline.files import atomic_path
from pipeline.yaml_files import read_lock

_LOCK = Path("dvc.lock")
Contents = dict[str, str]  # the MD5 of each file, by its path in a checkout


def list_contents(stages: Iterable[str], tops: Sequence[str]) -> Contents:
    """Return what dvc.lock says of the files that some stages wrote, of those below some paths.

    Args:
        stages: by DVC's names for them, `train@main-0`; what has no entry is left out.
        tops: files, or folders.
    """
    lock = read_lock(_LOCK)["stages"] if _LOCK.is_file() else {}
    outs = [out for stage in stages if stage in lock for out in lock[stage]["outs"]]
    return {
        out["path"]: out["md5"]
        for out in outs
        if any(out["path"] == top or out["path"].startswith(f"{top}/") for top in tops)
    }


def store_contents(files: Mapping[str, Path]) -> Contents:
    """Put files into DVC's cache, and return what they hold, by the names that they go by."""
    from dvc_objects.fs.local import localfs

    with _opened() as repo:
        contents = {}
        for name, path in files.items():
            contents[name] = md5 = _hash(path)
            repo.cache.local.add(str(path), localfs, md5)
        return contents


def push_contents(contents: Contents) -> tuple[str | None, list[str]]:
    """Hand files to the default remote; return its name, None without one, and the files that the cache lacks.

    Raises:
        InputError: the remote does not take one.
    """
    if not contents:
        return None, []
    with _opened() as repo:
        lacking = _list_lacking(repo, contents)
        remote: str | None = repo.config["core"].get("remote")
        if remote and (held := {name: md5 for name, md5 in contents.items() if name not in lacking}):
            _transfer(repo.cloud.push, held, f"remote {remote} does not take")
        return remote, lacking


def fetch_contents(contents: Contents, folder: Path) -> list[Path]:
    """Bring files back below `folder`, where they are not there as they were, and return those that were brought.

    Raises:
        InputError: neither the cache nor the remote has one.
    """
    wanted = {name: content for name, content in contents.items() if _md5_of(folder / name) != content}
    if not wanted:
        return []
    with _opened() as repo:
        lacking = _list_lacking(repo, wanted)
        if lacking and not (remote := repo.config["core"].get("remote")):
            raise InputError(
                f"{lacking[0]}: DVC's cache lacks it, as {len(lacking)} of {len(contents)} files, and no remote is "
                "configured; `dvc remote add -d NAME URL` names the one that the run was kept to, or restore it on the "
                "machine that kept it"
            )
        if lacking:
            _transfer(repo.cloud.pull, {name: wanted[name] for name in lacking}, f"remote {remote} does not give")
            if lacking := _list_lacking(repo, wanted):
                raise InputError(
                    f"remote {remote} does not give {lacking[0]}; on the machine that kept it, keep it again"
                )
        for name, content in wanted.items():
            with atomic_path(folder / name) as partial:
                shutil.copyfile(repo.cache.local.oid_to_path(content), partial)
                if _md5_of(partial) != content:
                    raise InputError(f"{name}: DVC's cache has it damaged; remove {content[:2]}/{content[2:]} there")
    return [folder / name for name in wanted]


@contextmanager
def _opened() -> Iterator[Any]:
    os.environ |= {key: value for key, value in dvc_environment().items() if key == "DVC_SITE_CACHE_DIR"}
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)  # what a remote lacks is said here
    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        raise InputError(f"DVC: {shorten(error)}") from error


def _list_lacking(repo: Any, contents: Contents) -> list[str]:
    cache = repo.cache.local
    return [name for name, content in contents.items() if not Path(cache.oid_to_path(content)).is_file()]


def _transfer(move: Any, contents: Contents, fault: str) -> None:
    from dvc_data.hashfile.hash_info import HashInfo

    names = {content: name for name, content in contents.items()}
    try:
        failed = move({HashInfo("md5", md5) for md5 in names}).failed
    except Exception as error:  # a file system's, of which each remote has its own
        raise InputError(f"{fault} {min(contents)}: {shorten(error)}") from error
    if failed:
        raise InputError(f"{fault} {min(names[each.value] for each in failed)}; see `dvc remote list`, and try again")


def _md5_of(path: Path) -> str | None:
    return _hash(path) if path.is_file() else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
