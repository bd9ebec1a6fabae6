"""The paths that `predict` is given, looked at before anything is loaded.

In: paths of a run, of images and of the folder for results. Out: the images, each once, or an error that says what is
wrong with a path and what to do.
"""

import glob
import os
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import is_litter
from pipeline.predict.results import WRITERS, is_result

# What is written beside the results of images: the tables of all of them, and a folder of what is done.
MANIFEST, TABLE, MARKERS = "manifest.csv", "nuclei.csv", ".shards"

_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # of the files that are taken from a folder
_MOST_LINES = 20  # of an error


def list_images(given: Sequence[Path], out: Path) -> list[Path]:
    """Return the files that are meant by what was given: a file, a folder of images, a list of files, or a pattern.

    A folder stands for the PNG, JPEG and TIFF files in it, sorted by name, the results of this command aside; a text
    file `*.txt` for the paths in it, one a line; what is no path but has `*`, `?` or `[` for the paths that fit. The
    folder for results, among others, stands for nothing.

    Raises:
        InputError: there is no image in a folder, or nothing fits a pattern; a list cannot be read.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            if path.resolve() != out.resolve() or len(given) == 1:
                found += _list_folder(path)
        elif path.suffix.lower() == ".txt" and path.is_file():
            found += _read_list(path)
        elif not path.exists() and glob.has_magic(str(path)):
            fitting = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            if not fitting:
                raise InputError(f"{path}: no file fits; check the pattern, and the folder that it begins in")
            found += [file for file in fitting if not file.is_dir()]
        else:
            found.append(path)
    return found


def _list_folder(folder: Path) -> list[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); make it readable, or leave it out") from error
    images = [path for path in inside if path.suffix.lower() in _ENDINGS and not is_litter(path.name)]
    files = [path for path in images if not path.is_dir() and not is_result(path)]
    if not files:
        raise InputError(
            f"{folder}: no PNG, JPEG or TIFF in it; name another, the files, or those of folders in it: '{folder}/**/*'"
        )
    return files


def _read_list(path: Path) -> list[Path]:
    try:
        lines = os.fsdecode(path.read_bytes()).splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it readable, or leave it out") from error
    if not (files := [Path(line.strip()) for line in lines if line.strip()]):
        raise InputError(f"{path}: no path in it; write one a line, or name the images themselves")
    return files


def check_run(folds: Path) -> None:
    """Refuse a `folds` folder that holds no trained run, before anything in it is read.

    Raises:
        InputError: it holds none.
    """
    if not all((folds / name).exists() for name in ("weights", "sizes", "trees.npz", "decoding.json")):
        raise InputError(
            f"{folds}: no trained run, or not all of one; make or finish it with `make repro`, or name one with --run"
        )


def choose_images(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return the files of images among `paths`, each once, without the results of this command, which are counted.

    Raises:
        InputError: a path is no file that can be read, two files have one name, or nothing is left.
    """
    tables = [(out / name).resolve() for name in (MANIFEST, TABLE)]
    files = [path for path in paths if not is_result(path) and path.resolve() not in tables]
    if results := len(paths) - len(files):
        why = f"they have the names of this command's results ({', '.join([*WRITERS, MANIFEST, TABLE])})"
        print(f"{results} of {len(paths)} files are passed over: {why}", file=sys.stderr, flush=True)
    if not files:
        raise InputError(f"{out}: no image to predict but results of this command; give the images that they are of")
    if faults := [fault for fault in map(_find_fault, files) if fault]:
        raise join_faults(faults, f"{len(faults)} of {len(files)} paths are no images, so none was predicted")
    images = {path.parent.resolve() / path.name: path for path in files}
    # Some file systems take capitals, and accents in pieces, for the same.
    names = [unicodedata.normalize("NFC", path.stem).casefold() for path in images]
    often = Counter(names)
    if double := sorted({path.stem for path, name in zip(images, names, strict=True) if often[name] > 1}):
        raise InputError(
            f"{double[0]}: two images of this name would share their results; predict each into an --out of its own"
        )
    return list(images.values())


def _find_fault(path: Path) -> str | None:
    """Return what keeps a file from being read, and what to do; None where nothing does."""
    try:
        if path.is_dir():
            return f"{path}: a folder where a file should be; leave it out of the list"
        if path.exists() and not path.is_file():
            return f"{path}: no plain file but a pipe, a socket or a device; save the image to a file"
        path.open("rb").close()
    except FileNotFoundError:
        return f"{path}: no such file; check its name"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}); make it readable, or leave it out"
    return None


def check_out(out: Path) -> None:
    """Refuse a folder for results that cannot be made or written to; it is left as it is, or as missing as it is.

    Raises:
        InputError: it takes no file.
    """
    made: list[Path] = []
    try:
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise InputError(
            f"{out}: no folder that takes results ({error.strerror}); name another by --out, one that is there or can "
            "be made, and that you may write to"
        ) from error
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def join_faults(faults: Sequence[str], title: str) -> InputError:
    """Return the error that says what is wrong with some files: a line each after a title, where they are several."""
    if len(faults) == 1:
        return InputError(faults[0])
    more = [f"and {len(faults) - _MOST_LINES} more"] if len(faults) > _MOST_LINES else []
    return InputError("\n  ".join([f"{title}:", *faults[:_MOST_LINES], *more]))
