"""The packed store: many arrays in one file, streamed in, memory-mapped out.

In: named numpy arrays, one at a time. Out: an uncompressed `.npz`, so `numpy.load` reads it too; `Pack` maps each
array from the disk instead of loading it. One file per split keeps DVC's hashing off thousands of small files.
"""

import math
import mmap
import struct
import tokenize
import zipfile
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, shorten

# What zipfile and numpy raise where a pack is damaged, according to where the damage lies.
_DAMAGE = (
    *(OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, SyntaxError, tokenize.TokenError),
    *(TypeError, OverflowError, RecursionError, EOFError),
)
# The time that every member carries, so that equal arrays give equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class PackWriter:
    """Append arrays to a pack. Use as a context manager; wrap the path in `atomic_path` for an atomic write.

    The memory used does not grow with the number of arrays.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def __enter__(self) -> "PackWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._zip.close()
            self._file.close()
            return
        # A pack that broke off, on a full disk say, is thrown away: nobody writes its directory, and nothing that fails
        # here may hide why.
        self._zip.fp = None
        with suppress(OSError):
            self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Append `array` (any shape and plain dtype, C order) under `name`.

        Raises:
            InputError: `name` is taken already.
        """
        if f"{name}.npy" in self._zip.NameToInfo:
            raise InputError(f"{self._zip.filename}: two arrays named {name!r}; names in a pack must differ")
        entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
        with self._zip.open(entry, "w", force_zip64=array.nbytes > 2**30) as file:
            np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


class Pack(Mapping[str, NDArray[Any]]):
    """Read a pack: a mapping from name to a read-only array that stays on the disk until it is touched.

    Safe to pickle into loader workers: only the path travels.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = archive.infolist()
            self._entries = {i.filename.removesuffix(".npy"): (i.header_offset, i.file_size) for i in entries}
            if len(self._entries) < len(entries):
                raise zipfile.BadZipFile("two arrays of one name")
        except _DAMAGE as error:
            raise InputError(
                f"{self.path}: not a readable pack ({shorten(error)}); run the stage that writes it again"
            ) from error
        with self.path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, name: str) -> NDArray[Any]:
        offset, size = self._entries[name]
        try:
            return self._map_array(offset, size)
        except _DAMAGE as error:
            raise InputError(
                f"{self.path}: {name[:200]!r}: damaged ({shorten(error)}); run the stage that writes it again"
            ) from error

    def _map_array(self, offset: int, size: int) -> NDArray[Any]:
        """Map the array whose entry begins at `offset` and has `size` bytes, header and values."""
        # The local header, section 4.3.7 of PKWARE's APPNOTE: its two lengths may differ from the directory's.
        name_length, extra_length = struct.unpack_from("<HH", self._map, offset + 26)
        start = offset + 30 + name_length + extra_length
        self._map.seek(start)
        version = np.lib.format.read_magic(self._map)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(self._map)
        count = math.prod(shape)
        # A header that lies would map its neighbours' values, or with a size below 0 the whole rest of the file.
        if min(shape, default=0) < 0 or dtype.hasobject or self._map.tell() - start + count * dtype.itemsize != size:
            raise ValueError(f"its header says {shape} {dtype}, its entry has {size} bytes")
        values = np.frombuffer(self._map, dtype, count, self._map.tell())
        return values.reshape(shape, order="F" if fortran else "C")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._open()


def open_packs(paths: Iterable[Path]) -> Mapping[str, NDArray[Any]]:
    """Open several packs as one mapping, as safe to pickle as each of them.

    Raises:
        InputError: a pack is missing or damaged.
    """
    packs: list[Any] = [Pack(path) for path in paths]
    return ChainMap(*packs)
