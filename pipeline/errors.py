"""The package's own error: what the user can mend, said in one sentence."""

# How libraries say that memory ran out: torch on a CPU and on CUDA, C++, OpenCV.
_EXHAUSTED = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "bad alloc", "Insufficient memory")


class InputError(ValueError):
    """Input that the user can mend. The message names the file or image, the value and the cure."""


def explain_exhaustion(error: BaseException) -> str | None:
    """Return the sentence that says that memory ran out, and what to do; None where `error` is of another kind."""
    if not isinstance(error, MemoryError) and not any(words in str(error) for words in _EXHAUSTED):
        return None
    first = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"memory ran out ({first}); close other programs, or lower train.batch, predict.batch, predict.tile_px, "
        "data.workers or decode.workers; what was written before is as it was"
    )
