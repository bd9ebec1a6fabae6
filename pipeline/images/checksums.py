"""Archives are held to the checksums of their first arrival.

In: a folder of archives, and the `checksums.json` in it: by name of a file, its SHA-256 and its origin. Out: the
digests of what is there, or one error that names what differs.
"""

import json
from pathlib import Path
from typing import TypedDict

from pipeline.errors import InputError
from pipeline.files import sha256_of, write_json

CHECKSUMS = "checksums.json"


class Record(TypedDict):
    """What is known of a file: its SHA-256, in hex, and where it came from."""

    sha256: str
    origin: str


def verify_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each recorded file that is in `folder`, verified; empty where nothing was recorded.

    A file that was removed, to save space say, is no fault until somebody needs it.

    Raises:
        InputError: a file differs from its checksum.
    """
    digests = {}
    for name, record in read_records(folder).items():
        if (folder / name).is_file():
            digests[name] = check_digest(folder, name, sha256_of(folder / name), record)
    return digests


def check_digest(folder: Path, name: str, digest: str, record: Record | None) -> str:
    """Return the digest of a file of `folder`, held to its record where there is one.

    Raises:
        InputError: they differ.
    """
    if record is not None and digest != record["sha256"]:
        raise InputError(
            f"{folder / name}: its SHA-256 is {digest}, but {record['sha256']} was recorded when it first came; remove "
            f"the file and fetch again, or, to accept the new one, remove its entry from {folder / CHECKSUMS}"
        )
    return digest


def read_records(folder: Path) -> dict[str, Record]:
    """Return the records of a folder by file name; none where nothing was recorded.

    Raises:
        InputError: its checksums.json is damaged.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"sha256": record["sha256"], "origin": record["origin"]} for name, record in records.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a table of checksums; remove it to record the files anew") from error


def write_record(folder: Path, name: str, digest: str, origin: str) -> None:
    """Record a file that came into `folder`."""
    records: dict[str, Record] = {**read_records(folder), name: {"sha256": digest, "origin": origin}}
    write_json(folder / CHECKSUMS, dict(sorted(records.items())))
