"""The competition's archives: which image and mask lies where in a zip, and reading them without unpacking.

In: a zip in Kaggle's layout, `[folders/]<image_id>/images/<name>.png` and `[folders/]<image_id>/masks/<mask_id>.png`.
Out: an index of `ArchiveImage`s and the bytes of an entry. An archive is untrusted: nothing is ever written to a path
that it names, and an entry that could do harm ends in an `InputError`.
"""

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.errors import InputError, shorten
from pipeline.tables import check_image_id

_ENTRY = re.compile(r"(?:.*/)?(?P<image_id>[^/]+)/(?P<kind>images|masks)/(?P<name>[^/]+)", re.IGNORECASE | re.DOTALL)
# What zipfile raises where an archive is damaged, according to where the damage lies.
_DAMAGE = (
    *(OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError),
    *(ValueError, struct.error, OverflowError),  # an offset that is negative, or no place in any file
)
_MAX_BYTES_PER_PIXEL = 8  # four channels of 16 bits, uncompressed
_OVERHEAD_BYTES = 2**20  # headers and metadata
LITTER = ("Thumbs.db", "desktop.ini")  # what file managers leave behind
_LONGEST_NAME = 512  # characters; a file system takes 255 bytes for each folder, and Kaggle's names have 144
_LOCAL_HEADER_BYTES = 30  # before the name, section 4.3.7 of PKWARE's APPNOTE
_ENCRYPTED = 0x1  # general purpose bit 0, section 4.4.4 of PKWARE's APPNOTE


class Place(NamedTuple):
    """Where a file lies in a zip, as the zip's directory has it: who is given it need not read the whole directory."""

    name: str
    offset: int  # of its local header, bytes
    packed_bytes: int
    size_bytes: int
    crc: int
    method: int


@dataclass(frozen=True)
class ArchiveImage:
    """One image of an archive: its id, its entry, and its masks' entries in the order of their names."""

    image_id: str
    image_entry: str
    mask_entries: tuple[str, ...]


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open the zip at `path`.

    Raises:
        InputError: the file is missing, or is no whole zip.
    """
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such archive; `python -m pipeline fetch` gets it, or set data.dir, data.sources and data.test"
        ) from error
    except _DAMAGE as error:
        raise InputError(f"{path}: not a whole zip file ({shorten(error)}); download it again") from error


@lru_cache(maxsize=1)
def open_file_once(path: Path) -> IO[bytes]:
    """Open the zip at `path` for `read_place`, without reading its directory, and keep it open as `open_once` does.

    Raises:
        InputError: it cannot be opened any more.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run the same command again") from error


@lru_cache(maxsize=1)
def open_once(path: Path) -> zipfile.ZipFile:
    """Open the zip at `path`, and keep it open between the jobs of a process: its directory may be long.

    Whoever is done clears the cache: another file may come to lie at this path.
    """
    return open_archive(path)


def read_entry(archive: zipfile.ZipFile, entry: str, max_pixels: int) -> bytes:
    """Return the bytes of `entry`, checked against its CRC.

    Raises:
        InputError: the entry is damaged, is packed by another method than deflate, or unpacks to more than an image of
            `max_pixels` can take: a bomb.
    """
    assert archive.fp is not None  # it is open
    return read_place(archive.fp, find_place(archive, entry), f"{archive.filename}: {entry}", max_pixels)


def find_place(archive: zipfile.ZipFile, entry: str) -> Place:
    """Return where `entry`, which must be there, lies."""
    info = archive.getinfo(entry)
    return Place(entry, info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)


def read_place(file: IO[bytes], place: Place, where: str, max_pixels: int) -> bytes:
    """Return the bytes of what lies at `place` in the zip `file`, as `read_entry` does; `where` is for messages."""
    # What is packed needs its room too, and no image grows by packing.
    size, most = max(place.size_bytes, place.packed_bytes), max_pixels * _MAX_BYTES_PER_PIXEL + _OVERHEAD_BYTES
    if size > most:
        raise InputError(
            f"{where}: unpacks to {size} bytes, "
            f"more than an image of max_pixels = {max_pixels}; raise housekeeping.max_pixels if the image is real"
        )
    # Of the other methods' streams, zipfile unpacks a piece at once whatever its size, and 50 bytes may be gigabytes.
    if place.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{where}: packed by method {place.method}, not deflate; zip it anew by deflate")
    try:
        return _read_plain(file, place)
    except _DAMAGE as error:
        raise InputError(f"{where}: damaged ({shorten(error)}); download the archive again") from error


def _read_plain(file: IO[bytes], place: Place) -> bytes:
    """Return the bytes of a stored or deflated entry; never more than its size in the directory and one are unpacked.

    Without the objects that zipfile makes for each entry, which take longer than a mask of some hundred bytes.
    """
    file.seek(place.offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("no header where the directory says")
    # The lengths of the name and of the extra field come last.
    file.seek(sum(struct.unpack_from("<HH", header, 26)), 1)
    content = file.read(place.packed_bytes)
    if place.method == zipfile.ZIP_DEFLATED:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, place.size_bytes + 1)
    if len(content) != place.size_bytes:
        raise zipfile.BadZipFile(f"another size than {place.size_bytes} bytes")
    if zlib.crc32(content) != place.crc:
        raise zipfile.BadZipFile("Bad CRC-32")
    return content


def index_archive(archive: zipfile.ZipFile, labelled: bool, allow_unlabelled: bool) -> list[ArchiveImage]:
    """Find the images of an archive, sorted by image_id; entries outside the layout (a README) are passed over.

    `labelled` says that masks belong to the images; without it masks are ignored, as in a test set.

    Raises:
        InputError: an entry is encrypted, a link, no PNG, twice there, lies over another or leads out of its folder; a
            name is absurdly long; an id cannot stand in a CSV; two images have one id; a mask has no image; an image
            has no mask while `allow_unlabelled` is false; there is no image at all.
    """
    images: dict[str, str] = {}
    masks: dict[str, list[str]] = {}
    for entry in list_entries(archive):
        match = _ENTRY.fullmatch(entry)
        if match is None or "__MACOSX" in entry or match["name"].startswith(".") or match["name"] in LITTER:
            continue
        image_id = match["image_id"]
        _check_name(archive, entry, image_id, match["name"])
        if match["kind"].lower() == "masks":
            masks.setdefault(image_id, []).append(entry)
        elif image_id in images:
            raise InputError(
                f"{archive.filename}: two images with the id {image_id}: {images[image_id]} and {entry}; remove one"
            )
        else:
            images[image_id] = entry
    if not images:
        raise InputError(
            f"{archive.filename}: no PNG of the form <image_id>/images/<image_id>.png; is it the right archive?"
        )
    if not labelled:
        masks = {}
    _check_labels(archive, images, masks, labelled and not allow_unlabelled)
    return [
        ArchiveImage(image_id, images[image_id], tuple(sorted(masks.get(image_id, ())))) for image_id in sorted(images)
    ]


def _check_name(archive: zipfile.ZipFile, entry: str, image_id: str, name: str) -> None:
    if not name.lower().endswith(".png"):
        raise InputError(f"{archive.filename}: {entry}: not a PNG; convert it, or take it out of the archive")
    check_image_id(image_id, f"{archive.filename}: {entry}")


def _check_labels(
    archive: zipfile.ZipFile, images: dict[str, str], masks: dict[str, list[str]], required: bool
) -> None:
    stray = sorted(masks.keys() - images.keys())
    if stray:
        raise InputError(
            f"{archive.filename}: {masks[stray[0]][0]}: a mask without an image; remove it or add the image"
        )
    bare = sorted(images.keys() - masks.keys())
    if required and bare:
        raise InputError(
            f"{archive.filename}: {images[bare[0]]}: no masks ({len(bare)} such images); "
            "set data.allow_unlabelled to true to take them as images without nuclei"
        )


def list_entries(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of all files in the archive after refusing what an honest archive never has."""
    _check_places(archive)
    seen: dict[str, str] = {}
    for info in archive.infolist():
        name = info.filename
        if len(name) > _LONGEST_NAME:
            raise InputError(f"{archive.filename}: {name[:60]!r}: a name of {len(name)} characters; shorten it")
        where = f"{archive.filename}: {name!r}"
        # The quick questions first: an archive has tens of thousands of entries.
        if "\\" in name:
            raise InputError(
                f"{where}: backslashes, by which a name leads out of its folder on some systems; zip it anew with `/`"
            )
        if name[0:1] == "/" or (name[1:2] == ":" and name[0].isalpha()) or (".." in name and ".." in name.split("/")):
            raise InputError(f"{where}: leads out of the archive's folder; do not trust this archive")
        is_plain = name.isascii() and name.isprintable()
        if not is_plain and any(unicodedata.category(letter) == "Cc" for letter in name):
            raise InputError(f"{where}: a control character in the name; rename the entry")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{where}: a symbolic link; store the file itself")
        if info.flag_bits & _ENCRYPTED:
            raise InputError(f"{where}: encrypted; unpack it with its password and zip it anew")
        # Names that one file system takes for two and another for one.
        key = name.lower() if is_plain else unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise InputError(f"{where}: the same name as {seen[key]!r}; remove one")
        seen[key] = name
    return [name for name in seen.values() if not name.endswith("/")]


def _check_places(archive: zipfile.ZipFile) -> None:
    """Refuse entries that share their bytes: of such, a small archive may hold any number of large images."""
    end, previous = 0, ""
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise InputError(
                f"{archive.filename}: {info.filename[:200]!r}: lies over {previous[:200]!r} or outside of the archive; "
                "download it again, and do not trust this archive if that brings the same"
            )
        end, previous = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size, info.filename
