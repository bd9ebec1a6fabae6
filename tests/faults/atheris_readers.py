"""The readers of run-length texts and of CSV files, fuzzed by coverage: atheris looks for bytes that reach new code.

In: a number of runs and a seed. Out: one line, or an `AssertionError` with the fuzzer's last words and the folder that
holds the bytes. `python -m tests.faults.atheris_readers -runs=100000 -seed=1` runs it with any option of libFuzzer's.

The first byte of an input chooses the reader. A right result is one that the slow and plain way of reading gives too.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (6, 7)
SOLUTION_HEADER = b"ImageId,EncodedPixels,Height,Width,Usage\n"
# What the search begins with; the first byte chooses the reader.
CORPUS = {
    "rle": b"\x001 2 4 1 12 30",
    "rle empty": b"\x00",
    "submission": b"\x01ImageId,EncodedPixels\na,1 2 4 1\nb,\nb2,5 3\n",
    "submission quoted": b'\x01\xef\xbb\xbfImageId,EncodedPixels\r\n"a","1 2"\r\n',
    "solution": b"\x02" + SOLUTION_HEADER + b"a,1 2,6,7,Private\nb,,3,4,Public\nc,1 1,2,2,Ignored\n",
}


def _import_readers() -> "tuple[ModuleType, Any, Any, Any]":
    """Import the readers with atheris's counters in them."""
    import atheris

    readers = [f"pipeline.nuclei.{name}" for name in ("rle", "csv_rows", "submission", "solution")]
    with atheris.instrument_imports(include=readers):
        from pipeline.nuclei import rle, solution, submission
    return atheris, rle.decode_pixels, submission.read_submission, solution.read_solution


def _decode_plainly(text: str, size: int) -> list[int]:
    numbers = [int(token) for token in text.split()]
    return [
        p - 1 for start, length in zip(numbers[::2], numbers[1::2], strict=True) for p in range(start, start + length)
    ]


def main(arguments: list[str]) -> None:
    """Fuzz until `-runs` are done or a reader fails, which ends the process with a code that is not 0."""
    atheris, decode_pixels, read_submission, read_solution = _import_readers()
    from pipeline.errors import InputError

    folder = tempfile.TemporaryDirectory(prefix="atheris-")
    path = Path(folder.name) / "file.csv"

    def read_one(data: bytes) -> None:
        content = data[1:]
        with contextlib.suppress(InputError):
            match data[0] % 3 if data else 0:
                case 0:
                    text = content.decode("utf-8", "surrogateescape")
                    pixels = decode_pixels(text, SHAPE).tolist()
                    assert pixels == _decode_plainly(text, SHAPE[0] * SHAPE[1])
                    assert all(0 <= pixel < SHAPE[0] * SHAPE[1] for pixel in pixels)
                case 1:
                    path.write_bytes(content)
                    for rows in read_submission(path).images.values():
                        assert len({row.text for row in rows}) == len(rows)
                        assert len(rows) == 1 or all(row.text for row in rows)
                case 2:
                    path.write_bytes(content if content.startswith(b"Image") else SOLUTION_HEADER + content)
                    for truth in read_solution(path).truths.values():
                        assert 0 < truth.shape[0] * truth.shape[1] <= 50_000_000
                        assert all(row.text == row.text.strip() != "" for row in truth.rows)

    atheris.Setup([sys.argv[0], *arguments], read_one)
    atheris.Fuzz()


def check(runs: int, seed: int) -> str:
    """Fuzz the readers `runs` times in a process of its own.

    Returns:
        One line: runs, seed, seconds.

    Raises:
        AssertionError: atheris is not installed, or a reader fails; the message holds what the fuzzer said last.
    """
    assert importlib.util.find_spec("atheris"), "atheris is not installed; `pip install -e '.[faults]'` brings it"
    start = time.monotonic()
    kept = Path(tempfile.mkdtemp(prefix="atheris-found-"))
    with tempfile.TemporaryDirectory(prefix="atheris-corpus-") as corpus:
        for name, data in CORPUS.items():
            (Path(corpus) / name).write_bytes(data)
        # Seconds of one run, and MB of the process: some hundred of them are the imports'.
        bounds = ["-max_len=400", "-timeout=5", "-rss_limit_mb=2048", f"-artifact_prefix={kept}/"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.atheris_readers", f"-runs={runs}", f"-seed={seed}", *bounds, corpus],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120 + runs / 100,
        )
    assert done.returncode == 0, f"atheris: seed {seed}, bytes in {kept}:\n{(done.stdout + done.stderr)[-3000:]}"
    assert f"Done {runs} runs" in done.stderr, done.stderr[-1000:]
    kept.rmdir()
    return f"atheris: {runs} runs of the RLE and CSV readers, no fault; seed {seed}; {time.monotonic() - start:.0f} s"


if __name__ == "__main__":
    main(sys.argv[1:])
