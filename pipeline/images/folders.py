"""Archives of two folders, images and labels, whose files belong together by their names.

In: a zip or a folder. Out: by name of a file what reads it, PNG, JPEG or TIFF; nothing is read before it is asked for.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import is_litter
from pipeline.images.archive import list_entries, open_archive, open_once, read_entry
from pipeline.images.raw import decode_image
from pipeline.images.tiff import is_tiff, read_tiff

# By name of the file: what reads it to (H, W) or (H, W, C) of any plain dtype, given the most pixels it may have.
Readers = Mapping[str, Callable[[int], NDArray[Any]]]


def list_folders(path: Path, section: str, names: tuple[str, str]) -> tuple[Readers, Readers]:
    """Return what reads the files of two folders of the archive at `path`; others (a README) are passed over.

    In a zip those two may lie in further folders. Both are empty where they are not there. Readers of a zip keep it
    open, by `open_once`, whose cache is the caller's to clear.

    Args:
        path: a zip or a folder.
        section: what params.yaml calls the source, for messages.
        names: of the two folders.

    Raises:
        InputError: there is no such archive, it is damaged, it has two files of one folder and name, or a folder is a
            link.
    """
    if path.is_file():
        return _list_zip(path, names)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; set data.dir and {section}.archive to where it is")
    for folder in (path, *(path / name for name in names)):
        _refuse_link(folder)
    images, labels = ({file.name: partial(_read_file, file) for file in _list_files(path / name)} for name in names)
    return images, labels


def _list_zip(path: Path, names: tuple[str, str]) -> tuple[Readers, Readers]:
    found: dict[str, dict[str, Callable[[int], NDArray[Any]]]] = {name: {} for name in names}
    with open_archive(path) as archive:
        entries = list_entries(archive)
    for entry in entries:
        folder, name = PurePosixPath(entry).parent.name, PurePosixPath(entry).name
        if folder not in found or "__MACOSX" in entry or is_litter(name):
            continue
        if name in found[folder]:
            raise InputError(f"{path}: {entry}: a second {folder}/{name}; remove one")
        found[folder][name] = partial(_read_zipped, path, entry)
    return found[names[0]], found[names[1]]


def _list_files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*") if file.is_file() and not is_litter(file.name)]


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise InputError(
            f"{folder}: a link to a folder, into which DVC does not look, so changes in it would go unseen; copy the "
            "folder in, or zip it"
        )


def _read_zipped(path: Path, entry: str, max_pixels: int) -> NDArray[Any]:
    return _decode(read_entry(open_once(path), entry, max_pixels), f"{path}: {entry}", max_pixels)


def _read_file(file: Path, max_pixels: int) -> NDArray[Any]:
    return _decode(file.read_bytes(), str(file), max_pixels)


def _decode(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    if not is_tiff(data):
        return decode_image(data, name, max_pixels)
    pages = read_tiff(Path(name), max_pixels, data)
    if len(pages) != 1:
        raise InputError(f"{name}: {len(pages)} pictures; give each image a file of its own")
    return pages[0]
