"""The package's own error: what the user can mend, said in one sentence."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import fcntl  # noqa: F401 (locks of files; asked for here, since everything imports this module first)
except ModuleNotFoundError:
    sys.exit("error: this runs on Linux and macOS; on Windows, run it in WSL, https://learn.microsoft.com/windows/wsl")

# How libraries say that memory ran out: torch on a CPU and on CUDA, C++, OpenCV.
_EXHAUSTED = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "bad alloc", "Insufficient memory")


class InputError(ValueError):
    """Input that the user can mend. The message names the file or image, the value and the cure."""


def shorten(error: object, most: int = 200) -> str:
    """Return what an error says, or any text, as one line of at most `most` characters."""
    return " ".join(str(error).split())[:most]


def explain_exhaustion(error: BaseException) -> str | None:
    """Return the sentence that says that memory ran out, and what to do; None where `error` is of another kind."""
    if not isinstance(error, MemoryError) and not any(words in str(error) for words in _EXHAUSTED):
        return None
    first = shorten(error) or type(error).__name__
    return (
        f"memory ran out ({first}); close other programs, or lower train.batch, predict.batch, predict.tile_px "
        "or housekeeping.workers; what was written before is as it was"
    )


@contextmanager
def one_line_errors(when_stopped: str = "") -> Iterator[None]:
    """End a command with one line where the user can mend what went wrong, and with 130 where it was interrupted.

    `when_stopped` is printed to stderr in the latter case.
    """
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # also what libraries of networks raise, over many lines
        sys.exit(f"error: {shorten(error, 1000)}")
    except KeyboardInterrupt:
        if when_stopped:
            print(when_stopped, file=sys.stderr, flush=True)
        sys.exit(130)  # 128 + SIGINT, as shells count it
    except Exception as error:
        explained = explain_exhaustion(error)
        if explained is None:
            raise
        sys.exit(f"error: {explained}")
