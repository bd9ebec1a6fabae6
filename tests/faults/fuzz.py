"""Bad input, fuzzed: whatever the bytes, a reader gives a right result or one `InputError`, soon and in little memory.

In: a number of cases and a seed. Out: one line of counts, or an `AssertionError` that names the target, the case, the
seed, and a folder with the bytes. `python -m tests.faults.fuzz 10000 0` runs it.

A case is decided by (seed, its number) alone, so one that failed can be run again. Cases run in child processes with a
limit on their address space; each has a limit on its CPU time; a child that dies or hangs names the case it was at.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import InputError
from pipeline.experiments.runs import parse_scores
from pipeline.folds.table import check_folds, read_folds
from pipeline.images.mask_png import decode_used_rows
from pipeline.images.prepare import prepare_split, read_sizes
from pipeline.images.raw import decode_image, to_rgb
from pipeline.images.splits import PreparedSplit
from pipeline.images.store import Pack
from pipeline.images.table import read_table
from pipeline.nuclei.solution import read_solution, score_submission
from pipeline.nuclei.submission import read_submission, validate_submission, write_submission
from pipeline.params import Params, load_params
from tests.faults import mutations
from tests.tiny import tiny_source

ROOT = Path(__file__).resolve().parents[2]
CHILDREN = 2
CPU_S = 5.0  # of one case; the slowest takes some tenths
GROWTH_BYTES = 2**30  # of the address space, from what the imports and the seeds take
MAX_PIXELS = 10**6  # in these cases: the rules are those of the real limits, and a case at its limit stays quick
SHAPES = {"a": (3, 4), "b": (6, 5), "c": (2, 2)}
PREPARED = {"images.npz", "table.csv", "problems.csv"}


class _TooSlow(BaseException):
    """No Exception, so that no reader takes it for damage of its file."""


@dataclass(frozen=True)
class Case:
    """One case: the files that a target is given, and what to hold its result against."""

    files: dict[str, bytes]
    expected: Any = None


# A target's `make` draws a case; its `run` reads the files in a folder. It returns if there was a result, raises
# InputError where all was refused, and AssertionError where a result is wrong.
Make = Callable[[random.Random, mutations.Seeds], Case]
Run = Callable[[Path, Case, Params], None]


def make_archive(rng: random.Random, seeds: mutations.Seeds) -> Case:
    """Draw a damaged zip; where only its bytes are damaged, every image in it is still one of the seeds'."""
    if rng.random() < 0.6:
        return Case({"train.zip": mutations.damage_zip(rng, seeds.archive)}, seeds.image_digests)
    return Case({"train.zip": mutations.forge_zip(rng, seeds)})


def run_archive(folder: Path, case: Case, params: Params) -> None:
    """Prepare the zip; nothing is written beside the output, whose table and pack agree."""
    sources = {"fuzzed": tiny_source("train.zip", "competition")}
    housekeeping = params.housekeeping.model_copy(update={"max_pixels": MAX_PIXELS, "workers": 1})
    path, out = folder / "train.zip", folder / "a" / "b" / "out"
    out.mkdir(parents=True)
    before = _list_files(folder, out)
    refusal: InputError | None = None
    try:
        table = prepare_split(sources, folder, out, True, params.data, housekeeping)
        assert {p.name for p in out.iterdir()} == PREPARED
        split = PreparedSplit.open(out)
        assert split.image_ids == table["image_id"].tolist()
        assert len(Pack(out / "images.npz")) == 2 * len(table)
        for row in table.itertuples():
            image, label_map = split.image(row.image_id), split.label_map(row.image_id)
            assert image.shape == (row.height, row.width, 3)
            assert label_map.shape == (row.height, row.width)
            assert int(label_map.max(initial=0)) == row.nuclei
            assert case.expected is None or mutations.digest(image) in case.expected
        sizes = read_sizes(path, MAX_PIXELS)
        assert sizes == {row.image_id: (row.height, row.width) for row in table.itertuples()}
    except InputError as error:
        refusal = error
        with contextlib.suppress(InputError):  # it knows no masks, and may well succeed
            read_sizes(path, MAX_PIXELS)
    assert _list_files(folder, out) == before
    assert {p.name for p in out.iterdir()} <= PREPARED
    if refusal is not None:
        raise refusal


def _list_files(folder: Path, without: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if without not in path.parents}


def make_image(rng: random.Random, seeds: mutations.Seeds) -> Case:
    """Draw a damaged image; where a PNG's bytes are damaged and no checksum mended, its pixels are still the seed's."""
    name = rng.choice(sorted(seeds.images))
    data = seeds.images[name]
    if rng.random() < 0.5:
        damaged = mutations.damage(rng, data)
        return Case({"image": damaged}, seeds.pixels[name] if name.startswith("png") else None)
    if name.startswith("png"):
        return Case({"image": mutations.forge_png(rng, data)})
    return Case({"image": mutations.forge_jpeg(rng, data) if name.startswith("jpeg") else data})


def run_image(folder: Path, case: Case, params: Params) -> None:
    """Decode the image as an image and as a mask; both agree."""
    data = (folder / "image").read_bytes()
    used = decode_used_rows(data, MAX_PIXELS)
    array = decode_image(data, "image", MAX_PIXELS)
    assert array.dtype in (np.uint8, np.uint16)
    assert 0 < array.shape[0] * array.shape[1] <= MAX_PIXELS
    assert to_rgb(array).shape == (*array.shape[:2], 3)
    assert case.expected is None or np.array_equal(array, case.expected), "damaged, and yet it decodes to other pixels"
    if used is not None:
        whole = np.zeros(used.shape, np.uint8)
        whole[used.top : used.top + len(used.rows)] = used.rows
        assert np.array_equal(whole, array)


def make_submission(rng: random.Random, seeds: mutations.Seeds) -> Case:
    """Draw a damaged submission."""
    return Case({"s.csv": mutations.damage_text(rng, seeds.submission)})


def run_submission(folder: Path, case: Case, params: Params) -> None:
    """Check the submission; where it is valid, its label maps say the same again when they are written."""
    path = folder / "s.csv"
    submission = read_submission(path)
    assert sum(map(len, submission.images.values())) <= path.read_bytes().count(b",")
    submission.check(SHAPES)
    maps = dict(submission.label_maps(SHAPES))
    assert {name: label_map.shape for name, label_map in maps.items()} == SHAPES
    write_submission(folder / "again.csv", sorted(maps.items()))
    assert validate_submission(folder / "again.csv", SHAPES) == submission.count_nuclei()


def make_score(rng: random.Random, seeds: mutations.Seeds) -> Case:
    """Draw a submission and a solution, the latter damaged and sometimes both."""
    submission = mutations.damage_text(rng, seeds.submission) if rng.random() < 0.2 else seeds.submission
    return Case({"s.csv": submission, "solution.csv": mutations.damage_text(rng, seeds.solution)})


def run_score(folder: Path, case: Case, params: Params) -> None:
    """Score one against the other."""
    solution = read_solution(folder / "solution.csv")
    score = score_submission(read_submission(folder / "s.csv"), solution)
    assert 0 <= score.mean <= 1
    assert score.table["image_id"].tolist() == sorted(solution.truths)


def make_folds(rng: random.Random, seeds: mutations.Seeds) -> Case:
    """Draw a damaged fold table."""
    return Case({"folds.csv": mutations.damage_text(rng, seeds.folds)})


def run_folds(folder: Path, case: Case, params: Params) -> None:
    """Read and check the fold table; one that passes splits no group."""
    folds = read_folds(folder / "folds.csv")
    check_folds(folds, [f"image{i}" for i in range(6)], None, (0, 1, 2))
    assert sorted(folds["image_id"]) == [f"image{i}" for i in range(6)]
    assert folds.groupby("group")["fold"].nunique().max() == 1


def make_table(rng: random.Random, seeds: mutations.Seeds) -> Case:
    """Draw a damaged table of prepared images or of scores."""
    name = rng.choice(("table.csv", "scores.csv"))
    return Case({name: mutations.damage_text(rng, seeds.table if name == "table.csv" else seeds.scores)})


def run_table(folder: Path, case: Case, params: Params) -> None:
    """Read the table; what comes has ids, sizes and counts."""
    if "table.csv" in case.files:
        table = read_table(folder)
        assert (table[["height", "width"]] > 0).all(axis=None)
        assert (table["nuclei"] >= 0).all()
        assert table["image_id"].is_unique
    else:
        try:
            text = case.files["scores.csv"].decode()
        except UnicodeDecodeError:
            text = case.files["scores.csv"].decode("latin-1")
        assert parse_scores(text, "scores.csv")["ap"].between(0, 1).all()


def make_params(rng: random.Random, seeds: mutations.Seeds) -> Case:
    """Draw a damaged params.yaml."""
    return Case({"params.yaml": mutations.damage_yaml(rng, seeds.params)})


def run_params(folder: Path, case: Case, params: Params) -> None:
    """Read it; whatever passes is whole and would pass again."""
    read = load_params(folder / "params.yaml")
    assert Params.model_validate(read.model_dump()) == read


def make_pack(rng: random.Random, seeds: mutations.Seeds) -> Case:
    """Draw a damaged pack."""
    damaged = mutations.damage_pack(rng, seeds.pack)
    return Case({"images.npz": damaged})


def run_pack(folder: Path, case: Case, params: Params) -> None:
    """Map every array of it, and touch all."""
    pack = Pack(folder / "images.npz")
    for name in pack:
        array = pack[name]
        assert array.dtype.kind != "O"
        assert array.nbytes <= len(case.files["images.npz"])
        array.tobytes()


# Twenty cases in turn: the untrusted files, archives and images, have half of them.
TARGETS: dict[str, tuple[Make, Run, int]] = {
    "archive": (make_archive, run_archive, 5),
    "image": (make_image, run_image, 6),
    "submission": (make_submission, run_submission, 3),
    "score": (make_score, run_score, 2),
    "folds": (make_folds, run_folds, 1),
    "table": (make_table, run_table, 1),
    "params": (make_params, run_params, 1),
    "pack": (make_pack, run_pack, 1),
}
ORDER = [name for name, (_, _, share) in TARGETS.items() for _ in range(share)]


def run_case(number: int, seed: int, seeds: mutations.Seeds, params: Params, home: Path) -> bool:
    """Run one case in a folder of its own under `home`; return if there was a result, False for a refusal."""
    make, run, _ = TARGETS[ORDER[number % len(ORDER)]]
    case = make(random.Random(f"{seed}:{number}"), seeds)
    folder = home / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    (home / "number").write_text(str(number))
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        run(folder, case, params)
        return True
    except InputError as error:
        assert "\n" not in str(error).replace("\n);", ");"), f"a message of several lines: {error}"  # noqa: PT017
        assert len(str(error)) < 2000, f"a message of {len(str(error))} characters"  # noqa: PT017
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _stop(*_: object) -> None:
    raise _TooSlow(f"more than {CPU_S:g} s of CPU time")


def run_share(cases: int, seed: int, child: int, home: Path) -> None:
    """Run a child's share of the cases under its limits, and write counts and failures to `home`/result.json."""
    cv2.setNumThreads(1)
    os.environ["TQDM_DISABLE"] = "1"
    params = load_params(ROOT / "params.yaml")
    seeds = mutations.load_seeds(ROOT, home)
    signal.signal(signal.SIGPROF, _stop)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + GROWTH_BYTES, now + GROWTH_BYTES))
    results: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    failures: dict[str, str] = {}
    work = home / "work"
    work.mkdir()
    os.chdir(work)  # so that a write to a relative path is seen
    for number in range(child, cases, CHILDREN):
        target = ORDER[number % len(ORDER)]
        try:
            (results if run_case(number, seed, seeds, params, home) else refused)[target] += 1
            assert not any(work.iterdir()), f"wrote {next(work.iterdir())}"
        except (Exception, _TooSlow) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}: {type(error).__name__}"
            if where not in failures:
                kept = tempfile.mkdtemp(prefix=f"fuzz-{target}-{number}-")
                shutil.copytree(home / "case", kept, dirs_exist_ok=True)
                failures[where] = f"{target}, case {number}, seed {seed}: {where}: {str(error)[:300]}; bytes in {kept}"
    output = {"results": results, "refused": refused, "failures": failures}
    (home / "result.json").write_text(json.dumps(output))


def check(cases: int, seed: int) -> str:
    """Run `cases` cases, spread over the targets and over two processes.

    Returns:
        One line: cases per target, how many gave a result and how many were refused, seconds.

    Raises:
        AssertionError: a case gave a wrong result, another error, took too long or too much memory, or killed its
            process. The message says how to run it again.
    """
    start = time.monotonic()
    results: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-home-") as temporary:
        homes = [Path(temporary) / str(child) for child in range(CHILDREN)]
        children = []
        for child, home in enumerate(homes):
            home.mkdir()
            arguments = [str(cases), str(seed), str(child), str(home)]
            environment = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.fuzz", *arguments],
                    cwd=ROOT,
                    env=environment,
                    stderr=(home / "stderr").open("wb"),  # the decoders' own complaints, thousands of lines
                )
            )
        for child, home in zip(children, homes, strict=True):
            limit_s = 60 + cases * 0.1 - (time.monotonic() - start)
            try:
                code: int | str = child.wait(timeout=max(limit_s, 1))
            except subprocess.TimeoutExpired:
                child.kill()
                code = "hung"
            if not (home / "result.json").exists():
                number = (home / "number").read_text() if (home / "number").exists() else "none"
                kept = tempfile.mkdtemp(prefix=f"fuzz-killed-{number}-")
                if (home / "case").exists():
                    shutil.copytree(home / "case", kept, dirs_exist_ok=True)
                last = " ".join((home / "stderr").read_text(errors="replace").splitlines()[-1:])
                failures[f"process {home.name}"] = (
                    f"case {number}, seed {seed}: its process ended ({code}, {last}); bytes in {kept}"
                )
                continue
            output = json.loads((home / "result.json").read_text())
            results.update(output["results"])
            refused.update(output["refused"])
            failures.update(output["failures"])
    assert not failures, "\n".join(failures.values())
    per_target = ", ".join(f"{name} {results[name] + refused[name]}" for name in TARGETS)
    return (
        f"fuzz: {results.total() + refused.total()} cases ({per_target}): {results.total()} gave a result, "
        f"{refused.total()} were refused, none did harm; seed {seed}; {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    if len(sys.argv) == 5:
        run_share(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        print(check(int(sys.argv[1]), int(sys.argv[2])))
