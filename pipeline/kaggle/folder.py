"""Which of the competition's files a folder holds, as browsers leave them there among others.

In: a folder, or a single file. Out: offers: the name of a file of the competition, where it is, and what writes it. A
second download's name (`stage1_test (1).zip`, `stage1_test copy.zip`, in any case) means the same file. Kaggle's outer
zip and tables that are zipped are looked into; image folders that a browser has unpacked are zipped anew, always to the
same bytes. Nothing is written to a path that an archive names.
"""

import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.errors import InputError, shorten
from pipeline.files import atomic_path
from pipeline.images.archive import open_archive
from pipeline.kaggle.client import COMPETITION

IMAGES = ("stage1_train.zip", "stage1_test.zip", "stage2_test_final.zip")
TABLES = (
    "stage1_train_labels.csv",
    "stage1_solution.csv",
    "stage1_sample_submission.csv",
    "stage2_sample_submission_final.csv",
    "stage2_solution_final.csv",
)
_OUTER = f"{COMPETITION}.zip"
_FIXES = "kaggle-dsbowl-2018-dataset-fixes-master.zip"  # GitHub's name; it holds stage1_train

_COPY = re.compile(r"( ?- ?copy| copy( \d{1,2})?| ?\(\d{1,2}\)|[ -]\d{1,2})+(?=\.|$)")
_UNFINISHED = (".crdownload", ".part", ".partial", ".download", ".opdownload")
_WANTED = (
    "give `fixes`, `bbbc038`, `kaggle`, or a folder with any of " + ", ".join((*IMAGES, *TABLES, _OUTER, _FIXES)) + ", "
    "zipped or unpacked; archives of your own need no fetching: name them in data.sources"
)


@dataclass(frozen=True)
class Offer:
    """A file that a source has: its name, its origin, and how to bring it to a path."""

    name: str
    origin: str
    bring: Callable[[Path], object]


def find_offers(source: Path) -> list[Offer]:
    """Return what `source` holds of the competition, sorted by name; of one name there may be several.

    Raises:
        InputError: it holds nothing of it, or Kaggle's outer zip is damaged.
    """
    source = source.resolve()
    if not source.exists():
        raise InputError(f"{source}: no such folder; {_WANTED}")
    offers = _look_at(source) or (_look_into(source) if source.is_dir() else [])
    if not offers:
        left = [
            path.name for path in (source.glob("*") if source.is_dir() else ()) if path.suffix.lower() in _UNFINISHED
        ]
        hint = f" ({sorted(left)[0]} is a download that has not finished)" if left else ""
        raise InputError(f"{source}: no file of the competition in it{hint}; {_WANTED}")
    return sorted(offers, key=lambda offer: offer.name)


def _look_into(folder: Path) -> list[Offer]:
    """Return the offers of what lies in a folder: files before folders, first names before those of copies."""
    children = sorted(folder.iterdir(), key=lambda path: (path.is_dir(), len(path.name), path.name))
    return [offer for path in children for offer in _look_at(path)]


def _look_at(path: Path) -> list[Offer]:
    name, is_folder = _plain_name(path.name), path.is_dir()
    if is_folder and f"{name}.zip" in IMAGES:
        return [Offer(f"{name}.zip", str(path), partial(_pack, path))]
    if is_folder:
        return _look_into(path) if f"{name}.zip" in (_OUTER, _FIXES) else []
    if name != _OUTER:
        return _offer_file(name, path, ())
    with open_archive(path) as archive:
        entries = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    return [offer for entry in entries for offer in _offer_file(PurePosixPath(entry).name, path, (entry,))]


def _offer_file(name: str, path: Path, entries: tuple[str, ...]) -> list[Offer]:
    """Return the offer of the file `path`, or of the entry of an entry .. of it, if its name is one of ours."""
    name, origin = _plain_name(name), "/".join([str(path), *entries])
    table = name.removesuffix(".zip")
    if name == _FIXES:
        name = IMAGES[0]
    elif name != table and table in TABLES:
        name, entries = table, (*entries, table)
    return [Offer(name, origin, partial(_unpack, path, entries))] if name in (*IMAGES, *TABLES) else []


def _plain_name(name: str) -> str:
    """Return a file's name as it was before browsers and file managers numbered its copies, in lower case."""
    return _COPY.sub("", name.lower())


def _unpack(path: Path, entries: tuple[str, ...], target: Path) -> None:
    """Write the file `path`, or the entry of an entry .. of it, to `target`."""
    try:
        with ExitStack() as stack, atomic_path(target) as written:
            stream: IO[bytes] = stack.enter_context(path.open("rb"))
            for entry in entries:
                stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(stream)).open(entry))
            with written.open("wb") as file:
                shutil.copyfileobj(stream, file, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{'/'.join([str(path), *entries])}: does not unpack ({shorten(error)}); download it again"
        ) from error


def _pack(folder: Path, target: Path) -> None:
    """Write the PNGs of a folder to a zip, whose bytes their names and contents alone decide."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix.lower() == ".png"}
    with atomic_path(target) as written, zipfile.ZipFile(written, "w") as archive:
        for name, path in sorted(files.items()):
            if not path.name.startswith("."):
                archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
