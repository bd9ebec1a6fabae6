"""Random cases held to judges that share no code with the package: the submission's form, its refusals, the score.

In: how many cases, and a seed. Out: one line of figures; an `AssertionError` names the seed and the case of a
disagreement. Every case draws from a generator of its own, so one can be run again alone: `rng = default_rng([seed,
case])`. `python -m tests.faults.oracles` runs all three in full.

The judges are the competition's definition written down pixel by pixel here, and `stardist.matching`.
"""

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from stardist.matching import matching

from pipeline.errors import InputError
from pipeline.nuclei.metric import average_precision, count_matches
from pipeline.nuclei.submission import read_label_maps, validate_submission, write_submission

HEADER = "ImageId,EncodedPixels"
# StarDist matches at IoU >= threshold, in float32; the competition at IoU > threshold.
STRICT_THRESHOLDS = [float(np.nextafter(np.float32(k / 20), np.float32(1))) for k in range(10, 20)]

# A file system in memory, where there is one: waiting for the disk would be a third of the round trips' time.
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None
_RUN = "[0-9]{1,12} [0-9]{1,12}"

Shape = tuple[int, int]
T = TypeVar("T")


@contextmanager
def naming(seed: int, case: int, what: str = "") -> Iterator[None]:
    """Turn whatever goes wrong inside into an AssertionError that names the seed and the case."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"seed {seed}, case {case}{what}: {type(error).__name__}: {error}") from error


def demand(condition: object, what: str) -> None:
    """Hold under `python -O` too, where an assert statement would not."""
    if not condition:
        raise AssertionError(what)


def pick(rng: Generator, options: Sequence[T]) -> T:
    """Draw one as it is; `Generator.choice` would make numpy's strings, which lose a NUL at their end."""
    return options[int(rng.integers(len(options)))]


# Label maps ------------------------------------------------------------------------------------------------------


def draw_shape(rng: Generator, most: int) -> Shape:
    """Any shape up to `most` pixels a side; one case in ten is a single row, column or pixel."""
    height, width = (int(side) for side in rng.integers(1, most + 1, 2))
    return pick(rng, [(1, width), (height, 1), (1, 1)]) if rng.random() < 0.1 else (height, width)


def draw_label_map(rng: Generator, shape: Shape, nuclei: int) -> NDArray[np.integer]:
    """Up to `nuclei` nuclei with ids that have gaps: rectangles over one another, a grid, scattered pixels, or one."""
    height, width = shape
    kind = rng.choice(["rectangles", "grid", "scattered", "one", "empty"], p=[0.5, 0.2, 0.2, 0.05, 0.05])
    labels = np.zeros(shape, np.int64)
    if kind == "rectangles":
        for label in range(1, nuclei + 1):
            row, column = rng.integers(height), rng.integers(width)
            down, right = rng.integers(1, 12, 2)
            labels[row : row + down, column : column + right] = label
    elif kind == "grid":
        side = int(rng.integers(1, 5))
        rows, columns = np.indices(shape) // side
        labels = (rows * (width // side + 1) + columns + 1) % (nuclei + 1)
    elif kind == "scattered":
        labels = rng.integers(0, nuclei + 1, shape)
    elif kind == "one":
        labels[:] = 1
    return open_gaps(rng, labels)


def open_gaps(rng: Generator, labels: NDArray[np.int64]) -> NDArray[np.integer]:
    """Give the nuclei other ids at random, in another order: far apart, close together, or beyond 16 bits."""
    most = int(labels.max(initial=0))
    bounds = [(most, np.int32), (2**16 - 1, np.uint16), (2**31 - 1, np.int32), (2**31 - 1, np.int64)]
    highest, dtype = pick(rng, bounds)
    ids = np.append(0, rng.choice(highest, most, replace=False) + 1 if highest < 2**17 else draw_far(rng, most))
    return ids[labels].astype(dtype)


def draw_far(rng: Generator, count: int) -> NDArray[np.int64]:
    """Different ids up to 2 ** 31 - 1; `choice` without replacement would shuffle them all."""
    ids = np.unique(rng.integers(1, 2**31, 2 * count + 1))
    return rng.permutation(ids)[:count]


def number_by_id(label_map: NDArray[np.integer]) -> NDArray[np.int64]:
    """Renumber the nuclei to 1, 2, .. in the order of their ids: that of a submission's rows."""
    numbers = {int(label): number for number, label in enumerate(sorted(set(label_map.ravel().tolist()) - {0}), 1)}
    return np.array([[numbers.get(label, 0) for label in row] for row in label_map.tolist()]).reshape(label_map.shape)


def decode_naively(path: Path, shapes: dict[str, Shape]) -> dict[str, NDArray[np.int64]]:
    """Decode a submission as the competition words it: pixels from 1, down the columns, then left to right."""
    label_maps = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
    header, *lines = path.read_bytes().decode("utf-8").split("\n")
    demand(header == HEADER and lines.pop() == "", f"{path.name} has another header or end")
    found: Counter[str] = Counter()
    for line in lines:
        name, text = line.split(",")
        found[name] += bool(text)
        numbers = [int(word) for word in text.split(" ")] if text else []
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            pixels = np.arange(start, start + length)
            height, _ = shapes[name]
            label_maps[name][(pixels - 1) % height, (pixels - 1) // height] = found[name]
    return label_maps


# Round trip ------------------------------------------------------------------------------------------------------


def check_round_trip(cases: int, seed: int) -> str:
    """Write random label maps as a submission; the package and a naive decoder must both read the same nuclei back."""
    begin, images, nuclei, most = time.perf_counter(), 0, 0, 0
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        for case in range(cases):
            with naming(seed, case):
                counts = _round_trip(np.random.default_rng([seed, case]), Path(folder) / "submission.csv")
            images, nuclei, most = images + len(counts), nuclei + sum(counts), max(most, *counts)
    return (
        f"round trip: {cases} submissions of {images} images and {nuclei} nuclei (up to {most} in one), written, "
        f"checked and read back equal by two decoders; {time.perf_counter() - begin:.0f} s"
    )


def _round_trip(rng: Generator, path: Path) -> list[int]:
    """Return how many nuclei each image has."""
    large = rng.random() < 0.05
    names = sorted(draw_names(rng, 1 if large else int(rng.integers(1, 4))))
    drawn = {}
    for name in names:
        shape = (int(rng.integers(64, 200)), int(rng.integers(64, 200))) if large else draw_shape(rng, 40)
        drawn[name] = draw_label_map(rng, shape, 1000 if large else int(rng.integers(0, 60)))
    shapes = {name: label_map.shape for name, label_map in drawn.items()}
    expected = {name: number_by_id(label_map) for name, label_map in drawn.items()}
    counts = [int(label_map.max()) for label_map in expected.values()]

    write_submission(path, drawn.items())
    demand(validate_submission(path, shapes) == sum(counts), "the checker counts other nuclei")
    read = dict(read_label_maps(path, shapes))
    demand(list(read) == names, "other images come back")
    naive = decode_naively(path, shapes)
    for name in names:
        demand(np.array_equal(read[name], expected[name]), f"{name} {shapes[name]} is read back otherwise")
        demand(np.array_equal(naive[name], expected[name]), f"{name} {shapes[name]} decodes otherwise by definition")
    return counts


def draw_names(rng: Generator, count: int) -> set[str]:
    """Image ids like Kaggle's, and short ones with all that may stand in a CSV's cell."""
    names: set[str] = set()
    while len(names) < count:
        if rng.random() < 0.5:
            names.add(rng.bytes(8).hex())
        else:
            names.add("".join(rng.choice(list("aZ09_-.() é細'#;"), int(rng.integers(1, 8)))).strip() or "x")
    return names


# Refusals --------------------------------------------------------------------------------------------------------


@dataclass
class Draft:
    """A submission to spoil: its rows below the header as (image_id, runs), and what a spoiler may need to know."""

    shapes: dict[str, Shape]
    rows: list[tuple[str, list[int]]]
    header: str = HEADER
    raw: dict[int, str] = field(default_factory=dict)  # rows to be written so instead, by index
    bad_bytes: dict[int, bytes] = field(default_factory=dict)  # appended to a row

    def to_bytes(self, newline: str, bom: bool) -> bytes:
        """Return the file, with the newline and the byte order mark that somebody's program may write."""
        lines = [self.header.encode()]
        for i, (name, runs) in enumerate(self.rows):
            text = self.raw.get(i, f"{name},{' '.join(map(str, runs))}")
            lines.append(text.encode() + self.bad_bytes.get(i, b""))
        return (b"\xef\xbb\xbf" if bom else b"") + newline.encode().join([*lines, b""])


def is_valid(content: bytes, shapes: dict[str, Shape]) -> bool:
    """Judge a submission by the competition's definition alone, one pixel at a time."""
    try:
        header, *lines = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        return False
    owned: dict[str, set[int]] = {}
    empty = set()
    for line in lines:
        row = re.fullmatch(rf"([^,]+),({_RUN}(?: {_RUN})*)?", line)
        if row is None or row[1] not in shapes or row[1] in empty or (not row[2] and row[1] in owned):
            return False
        name, numbers = row[1], [int(word) for word in (row[2] or "").split()]
        if not numbers:
            empty.add(name)
        taken = owned.setdefault(name, set())
        end = 0
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            if start <= end or length < 1 or start + length - 1 > shapes[name][0] * shapes[name][1]:
                return False
            end = start + length - 1
            pixels = set(range(start, end + 1))
            if pixels & taken:
                return False
            taken |= pixels
    return header == HEADER and owned.keys() == shapes.keys()


def draw_draft(rng: Generator) -> Draft:
    """A valid submission of three images, one of them without nuclei; its rows in any order."""
    names = list(draw_names(rng, 3))
    shapes = {name: (int(rng.integers(9, 24)), int(rng.integers(9, 24))) for name in names}
    rows: list[tuple[str, list[int]]] = [(names[0], [])]
    for name in names[1:]:
        flat = np.zeros(shapes[name][0] * shapes[name][1], int)
        # Each nucleus has at least two runs of at least two pixels, with a gap of background before each run.
        runs: dict[int, list[int]] = {}
        position = int(rng.integers(1, 4))
        for label in [1, 2, 1, 2, *rng.integers(1, 6, 20).tolist()]:
            length = int(rng.integers(2, 5))
            if position + length > flat.size - 4:
                break
            runs.setdefault(label, []).extend([position + 1, length])
            position += length + int(rng.integers(1, 4))
        rows.extend((name, numbers) for numbers in runs.values())
    return Draft(shapes, [rows[i] for i in rng.permutation(len(rows))])


# A spoiler changes the draft and returns what the refusal may name: the indices of rows (-1 the header), or a name.
Spoiler = Callable[[Generator, Draft], list[int] | str]


def _pick(rng: Generator, draft: Draft, numbers: int = 2) -> int:
    """Return the index of a row with at least so many numbers."""
    return pick(rng, [i for i, (_, runs) in enumerate(draft.rows) if len(runs) >= numbers])


def _replace_word(rng: Generator, draft: Draft, i: int, word: str) -> list[int]:
    name, runs = draft.rows[i]
    words = list(map(str, runs))
    words[int(rng.integers(len(words)))] = word
    draft.raw[i] = f"{name},{' '.join(words)}"
    return [i]


def _spoil_word(*words: str) -> Spoiler:
    return lambda rng, draft: _replace_word(rng, draft, _pick(rng, draft), pick(rng, words))


def _spoil_number(parity: int, *numbers: int) -> Spoiler:
    """Set a start (parity 0) or a length (1)."""

    def spoil(rng: Generator, draft: Draft) -> list[int]:
        i = _pick(rng, draft)
        run = int(rng.integers(len(draft.rows[i][1]) // 2))
        draft.rows[i][1][2 * run + parity] = pick(rng, numbers)
        return [i]

    return spoil


def _spoil_line(*templates: str) -> Spoiler:
    def spoil(rng: Generator, draft: Draft) -> list[int]:
        i = _pick(rng, draft)
        name, runs = draft.rows[i]
        draft.raw[i] = pick(rng, templates).format(name=name, runs=" ".join(map(str, runs)))
        return [i]

    return spoil


def _wrong_header(rng: Generator, draft: Draft) -> list[int]:
    name, runs = draft.rows[0]
    wrong = ["ImageId", "imageid,encodedpixels", "EncodedPixels,ImageId", f"{HEADER},Usage", "ImageId;EncodedPixels"]
    draft.header = pick(rng, [*wrong, "", f"{name},{' '.join(map(str, runs))}", f"#{HEADER}", f"{HEADER}\0"])
    return [-1]


def _odd_count(rng: Generator, draft: Draft) -> list[int]:
    i = _pick(rng, draft)
    if rng.random() < 0.5:
        draft.rows[i][1].pop()
    else:
        draft.rows[i][1].append(1)
    return [i]


def _unsorted_runs(rng: Generator, draft: Draft) -> list[int]:
    i = _pick(rng, draft, 4)
    name, runs = draft.rows[i]
    draft.rows[i] = (name, runs[2:] + runs[:2])
    return [i]


def _overlap_in_a_row(rng: Generator, draft: Draft) -> list[int]:
    i = _pick(rng, draft, 4)
    runs = draft.rows[i][1]
    run = int(rng.integers(len(runs) // 2 - 1))
    runs[2 * run + 1] = runs[2 * run + 2] - runs[2 * run] + 1
    return [i]


def _overlap_of_two(rng: Generator, draft: Draft) -> list[int]:
    """Give one nucleus a pixel of another of its image, in its place among the runs."""
    i = _pick(rng, draft)
    name, runs = draft.rows[i]
    j = pick(rng, [j for j, row in enumerate(draft.rows) if row[0] == name and j != i])
    run = int(rng.integers(len(draft.rows[j][1]) // 2))
    start, length = draft.rows[j][1][2 * run : 2 * run + 2]
    pairs = sorted([*zip(runs[::2], runs[1::2], strict=True), (start + int(rng.integers(length)), 1)])
    draft.rows[i] = (name, [number for pair in pairs for number in pair])
    return [i, j]


def _beyond_the_image(rng: Generator, draft: Draft) -> list[int]:
    i = _pick(rng, draft)
    name, runs = draft.rows[i]
    height, width = draft.shapes[name]
    if rng.random() < 0.5:
        runs[-1] = height * width - runs[-2] + 2  # by one pixel
    else:
        runs.extend([height * width + int(rng.integers(1, 99)), 1])
    return [i]


def _unknown_image(rng: Generator, draft: Draft) -> list[int]:
    i = int(rng.integers(len(draft.rows)))
    name, runs = draft.rows[i]
    other = pick(rng, [f"{name}x", f"{name}.png", "?", f"{name}\0"])
    draft.rows[i] = (other, runs)
    return [i]


def _missing_image(rng: Generator, draft: Draft) -> str:
    name = pick(rng, list(draft.shapes))
    draft.rows = [row for row in draft.rows if row[0] != name]
    return name


def _duplicate_row(rng: Generator, draft: Draft) -> list[int]:
    row = pick(rng, draft.rows)
    draft.rows.insert(int(rng.integers(len(draft.rows) + 1)), (row[0], list(row[1])))
    return [i for i, other in enumerate(draft.rows) if other == row]


def _empty_row_beside_others(rng: Generator, draft: Draft) -> list[int]:
    name = draft.rows[_pick(rng, draft)][0]
    i = int(rng.integers(len(draft.rows) + 1))
    draft.rows.insert(i, (name, []))
    return [i]


def _blank_line(rng: Generator, draft: Draft) -> list[int]:
    """Before a row: behind the last one, blank lines do no harm, and many programs leave one."""
    i = int(rng.integers(len(draft.rows)))
    draft.rows.insert(i, ("", []))
    draft.raw[i] = ""
    return [i]


def _not_utf8(rng: Generator, draft: Draft) -> list[int]:
    i = int(rng.integers(len(draft.rows)))
    draft.bad_bytes[i] = pick(rng, [b"\xff", b"\xe9", b"\xc3", b"\xed\xa0\x80", b"\xc0\xb1"])
    return [i]


def _nul_byte(rng: Generator, draft: Draft) -> list[int]:
    i = int(rng.integers(len(draft.rows)))
    draft.bad_bytes[i] = b"\0"
    return [i]


SPOILERS: dict[str, Spoiler] = {
    "wrong header": _wrong_header,
    "start 0": _spoil_number(0, 0),
    "length 0": _spoil_number(1, 0),
    "negative": _spoil_number(1, -1, -2, -(2**31)),
    "odd count": _odd_count,
    "unsorted runs": _unsorted_runs,
    "overlap in a row": _overlap_in_a_row,
    "overlap of two nuclei": _overlap_of_two,
    "beyond the image": _beyond_the_image,
    "letter": _spoil_word("a", "O", "1a", "nan", "None", "0x1", "l2"),
    "float": _spoil_word("1.0", "1.", ".5", "1e0", "2E1", "inf"),
    "sign": _spoil_word("+1", "-1", "--1", "1-", "1_0"),
    "unicode digit": _spoil_word("\u0663", "\uff11", "\u00b2", "1\u0661", "\U0001d7cf"),
    "unknown image": _unknown_image,
    "missing image": _missing_image,
    "duplicate row": _duplicate_row,
    "empty row beside others": _empty_row_beside_others,
    "extra column": _spoil_line("{name},{runs},", "{name},{runs},Public", ",{name},{runs}", "{name},,{runs}"),
    "missing column": _spoil_line("{name}", "{runs}", "{name};{runs}", "{name}\t{runs}"),
    "blank line": _blank_line,
    "empty ImageId": _spoil_line(",{runs}", " ,{runs}", '"",{runs}'),
    "not UTF-8": _not_utf8,
    "NUL byte": _nul_byte,
    "huge number": _spoil_word("9" * 12, "9" * 18, "9" * 19, str(2**63 - 1), str(2**64 + 1), "1" * 5000),
}


def check_refusals(cases: int, seed: int) -> str:
    """Spoil valid submissions in one way each, all ways in turn; each is refused with the line that was spoiled."""
    begin, ways = time.perf_counter(), list(SPOILERS)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        for case in range(cases):
            way = ways[case % len(ways)]
            with naming(seed, case, f" ({way})"):
                _refuse(np.random.default_rng([seed, case]), Path(folder) / "submission.csv", SPOILERS[way])
    return (
        f"refusals: {cases} valid submissions taken, and refused with the right line once spoiled, in "
        f"{min(cases, len(ways))} ways; {time.perf_counter() - begin:.0f} s"
    )


def _refuse(rng: Generator, path: Path, spoil: Spoiler) -> None:
    draft, newline, bom = draw_draft(rng), pick(rng, ["\n", "\r\n"]), rng.random() < 0.2
    nuclei = sum(bool(runs) for _, runs in draft.rows)
    content = draft.to_bytes(newline, bom)
    demand(is_valid(content, draft.shapes), "the naive judge refuses the untouched file")
    path.write_bytes(content)
    demand(validate_submission(path, draft.shapes) == nuclei, "the checker counts other nuclei in the untouched file")

    wanted = spoil(rng, draft)
    content = draft.to_bytes(newline, bom)
    demand(not is_valid(content, draft.shapes), f"the naive judge takes the spoiled file: {content[:300]!r}")
    path.write_bytes(content)
    try:
        validate_submission(path, draft.shapes)
    except InputError as error:
        message = str(error)
    else:
        raise AssertionError(f"the checker takes the spoiled file: {content[:300]!r}")
    demand(path.name in message, f"the file is not named: {message}")
    if isinstance(wanted, str):
        demand(f"image {wanted};" in message, f"image {wanted} is not named: {message}")
        return
    named = re.search(r": line (\d+):", message)
    lines = [i + 2 for i in wanted]  # the header is line 1
    demand(named and int(named[1]) in lines, f"line {' or '.join(map(str, lines))} is not named: {message}")


# Scores ----------------------------------------------------------------------------------------------------------


def check_scores(cases: int, seed: int) -> str:
    """Compare counts at the ten thresholds with StarDist's on random pairs, and under a permutation of the ids."""
    begin, pairs = time.perf_counter(), 0
    for case in range(cases):
        with naming(seed, case):
            pairs += _compare_counts(np.random.default_rng([seed, case]))
    return (
        f"scores: {cases} pairs of label maps with {pairs} matches at IoU 0.5, TP, FP and FN at ten thresholds equal "
        f"to StarDist's and the same under other ids; {time.perf_counter() - begin:.0f} s"
    )


def _compare_counts(rng: Generator) -> int:
    """Return how many nuclei match at the lowest threshold."""
    truth, prediction = draw_pair(rng)
    matches = count_matches(truth, prediction)
    hits = matches.true_positives
    ours = [(tp, matches.n_prediction - tp, matches.n_truth - tp) for tp in hits.tolist()]
    theirs = [(m.tp, m.fp, m.fn) for m in matching(truth, prediction, STRICT_THRESHOLDS)]
    demand(ours == theirs, f"(TP, FP, FN) are {ours}, StarDist's {theirs}")
    # Of two empty maps StarDist's accuracy is 0, the competition's 1.
    expected = [tp / (tp + fp + fn) if tp + fp + fn else 1.0 for tp, fp, fn in theirs]
    demand(average_precision(matches).tolist() == expected, "the precision is not TP / (TP + FP + FN)")
    renamed = count_matches(open_gaps(rng, number_by_id(truth)), open_gaps(rng, number_by_id(prediction)))
    same = (renamed.n_truth, renamed.n_prediction) == (matches.n_truth, matches.n_prediction)
    demand(same and np.array_equal(renamed.true_positives, hits), "other ids give other counts")
    return int(hits[0])


def draw_pair(rng: Generator) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """A truth and a prediction that mostly agree, at all degrees; one or both may be empty, or of single pixels."""
    kind = rng.choice(
        ["moved", "400", "pixels", "no truth", "no prediction", "neither"], p=[0.6, 0.03, 0.17, 0.07, 0.07, 0.06]
    )
    if kind == "400":
        truth = np.kron(np.arange(1, 401).reshape(20, 20), np.ones((5, 5), np.int64))
    elif kind == "pixels":
        truth = rng.permutation(np.arange(0, int(rng.integers(2, 150)))).reshape(1, -1)
    else:
        truth = draw_blocks(rng, draw_shape(rng, 64))
    prediction = truth.copy()
    for _ in range(int(rng.integers(0, 3))):
        prediction = np.roll(prediction, int(rng.integers(-1, 2)), axis=int(rng.integers(2)))
    prediction[rng.random(truth.shape) < rng.choice([0, 0.02, 0.2, 0.5])] = 0
    for label in rng.choice(int(truth.max(initial=0)) + 1, 3):  # missed, or joined to another
        prediction[prediction == label] = int(rng.choice([0, 1, truth.max(initial=0) + 1]))
    if kind in ("no truth", "neither"):
        truth = np.zeros_like(truth)
    if kind in ("no prediction", "neither"):
        prediction = np.zeros_like(prediction)
    # What is one nucleus to both has different ids, in different orders.
    most = int(max(truth.max(), prediction.max()))
    ours, theirs = (np.append(0, rng.permutation(60_000)[:most] + 1) for _ in range(2))
    return ours[truth].astype(np.int32), theirs[prediction].astype(np.uint16 if rng.random() < 0.5 else np.int64)


def draw_blocks(rng: Generator, shape: Shape) -> NDArray[np.int64]:
    """Rectangles over one another: areas of few pixels, so that an IoU often is a threshold exactly."""
    labels = np.zeros(shape, np.int64)
    for label in range(1, int(rng.integers(1, 40))):
        row, column = rng.integers(shape[0]), rng.integers(shape[1])
        down, right = rng.integers(1, 12, 2)
        labels[row : row + down, column : column + right] = label
    return labels


if __name__ == "__main__":
    print(check_round_trip(2000, 0))
    print(check_refusals(500, 0))
    print(check_scores(1000, 0))
