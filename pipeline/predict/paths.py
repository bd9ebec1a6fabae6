"""The paths that `predict` is given, looked at before anything is loaded.

In: paths of a run, of images and of the folder for results. Out: the images, each once, or an error that says what is
wrong with a path and what to do.
"""

import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.errors import InputError
from pipeline.predict.results import WRITERS, is_result

_MOST_LINES = 20  # of an error


def check_run(folds: Path) -> None:
    """Refuse a `folds` folder that holds no trained run, before anything in it is read.

    Raises:
        InputError: it holds none.
    """
    if not all((folds / name).exists() for name in ("weights", "sizes", "candidates.npz", "decoding.json")):
        raise InputError(f"{folds}: no trained run; make one with `make repro`, or name one with --run")


def choose_images(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return the files of images among `paths`, each once, without the folder `out` and the results of this command.

    The latter are counted on stderr.

    Raises:
        InputError: a path is no file that can be read, two files have one name, or nothing is left.
    """
    paths = [path for path in paths if path.resolve() != out.resolve() or not path.is_dir()]
    files = [path for path in paths if not is_result(path)]
    if results := len(paths) - len(files):
        why = f"their names end as those of this command's results do ({', '.join(WRITERS)})"
        print(f"{results} of {len(paths)} files are passed over: {why}", file=sys.stderr, flush=True)
    if not files:
        raise InputError(f"{out}: no image to predict but results of this command; give the images that they are of")
    if faults := [fault for fault in map(_find_fault, files) if fault]:
        raise join_faults(faults, f"{len(faults)} of {len(files)} paths are no images, so none was predicted")
    images = {path.parent.resolve() / path.name: path for path in files}
    # Some file systems take capitals, and accents in pieces, for the same.
    names = [unicodedata.normalize("NFC", path.stem).casefold() for path in images]
    if double := sorted({path.stem for path, name in zip(images, names, strict=True) if names.count(name) > 1}):
        raise InputError(
            f"{double[0]}: two images of this name would share their results; predict each into an --out of its own"
        )
    return list(images.values())


def _find_fault(path: Path) -> str | None:
    """Return what keeps a file from being read, and what to do; None where nothing does."""
    try:
        if path.is_dir():
            return f"{path}: a folder; give the files in it, {path}/*.png say"
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
