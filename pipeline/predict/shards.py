"""Many images, by any number of runners that share a folder for results.

The images are cut into shards, a few minutes of work each. A runner finds the nuclei of its share of them, and marks
each that is done; whoever comes to a marked one passes it over. When all are done, `collect` makes tables of the whole;
that of nuclei has the same bytes whoever ran. In: image files and a trained run. Out: results of each image, `.shards/`
beside them with a marker for each shard, `manifest.csv` and `nuclei.csv`.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import atomic_path, hold, sha256_of
from pipeline.housekeeping import HousekeepingParams
from pipeline.predict.paths import MANIFEST, MARKERS, TABLE, join_faults
from pipeline.predict.reading import Outcome
from pipeline.predict.results import WRITERS
from pipeline.predict.segment import Segmenter, segment_files
from pipeline.progress import Bar
from pipeline.provenance import check_runtime, fingerprint
from pipeline.unet.kind import describe_kind

_MOST_FILES, _MOST_BYTES = 64, 2**26  # of a shard
_MEAN_FILES = 32
_HOURS_S = 24 * 3600.0  # in which another runner finds a shard


@dataclass(frozen=True)
class Shard:
    """Some images.

    Attributes:
        paths: their files.
        out: the folder for results.
        key: a fingerprint of all else that decides what is found in them.
    """

    paths: tuple[Path, ...]
    out: Path
    key: str

    @cached_property
    def marker(self) -> Path:
        """The file that says that the results are there: its name is a digest of the images and of the key."""
        digest = fingerprint({"key": self.key, "files": [(path.name, _digest(path)) for path in self.paths]})
        return self.out / MARKERS / f"{digest}.json"


def _begins_shard(path: Path) -> bool:
    return int(hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8], 16) % _MEAN_FILES == 0


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:  # whoever reads the image says so
        return ""


def cut_shards(paths: Sequence[Path], out: Path, key: str) -> list[Shard]:
    """Return the shards of all files, in order.

    Where one ends is a matter of the next file's name: a file more or less changes no shard but its own, or few.

    Args:
        paths: image files.
        out: the folder for results.
        key: a fingerprint of all else that decides what is found: the networks, parameters, the device.
    """
    shards: list[Shard] = []
    part: list[Path] = []
    size = 0
    for path in paths:
        more = path.stat().st_size
        if part and (_begins_shard(path) or len(part) == _MOST_FILES or size + more > _MOST_BYTES):
            shards.append(Shard(tuple(part), out, key))
            part, size = [], 0
        part.append(path)
        size += more
    return [*shards, Shard(tuple(part), out, key)] if part else shards


def run_shards(
    shards: Sequence[Shard],
    load: Callable[[], Segmenter],
    housekeeping: HousekeepingParams,
    bar: Bar,
    channel: int | None = None,
) -> Iterator[Outcome]:
    """Find the nuclei of shards, those that are done aside, and yield what became of each image.

    Args:
        shards: this runner's; another may be at them too.
        load: loads the trained run; called once, where there is anything to do.
        housekeeping: `predict_max_pixels` of an image.
        bar: is told of each image.
        channel: of files with several, the one that is taken alone.

    Raises:
        InputError: others of these shards were found on another kind of device, or in another precision.
    """
    segmenter = None
    for shard in shards:
        if is_done(shard):
            bar(len(shard.paths))
            continue
        lock = shard.marker.with_suffix(".lock")
        with hold(lock, "another process finds these images", _HOURS_S):
            if is_done(shard):  # by now
                bar(len(shard.paths))
                continue
            if segmenter is None:
                segmenter = load()
                check_runtime(runtime_of(shard), describe_kind(segmenter.runtime))
            outcomes = []
            for outcome in segment_files(shard.paths, shard.out, segmenter, housekeeping, bar, channel):
                outcomes.append(outcome)
                yield outcome
            _write_marker(shard, outcomes)
            lock.unlink(missing_ok=True)


def _write_marker(shard: Shard, outcomes: Sequence[Outcome]) -> None:
    rows = [[str(one.path), one.name, one.nuclei, one.fault, one.is_lasting, round(one.seconds, 3)] for one in outcomes]
    results = {path.name: sha256_of(path) for path in _list_results(shard, outcomes)}
    content = json.dumps({"outcomes": rows, "results": results}).encode()
    with atomic_path(shard.marker) as partial:
        partial.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def _list_results(shard: Shard, outcomes: Sequence[Outcome]) -> list[Path]:
    return [shard.out / f"{each.name}{suffix}" for each in outcomes if not each.fault for suffix in WRITERS]


def _read_marker(shard: Shard) -> tuple[list[Outcome], dict[str, str]] | None:
    """Return what became of a shard's images, and the digests of its results; None where it has no whole marker."""
    try:
        digest, _, text = shard.marker.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest.decode(errors="replace") != hashlib.sha256(text).hexdigest():
        return None
    content = json.loads(text)
    # Files may have moved with their folder since.
    files = {path.name: path for path in shard.paths}
    return [Outcome(files[Path(path).name], *rest) for path, *rest in content["outcomes"]], content["results"]


def read_marker(shard: Shard) -> list[Outcome] | None:
    """Return what became of a shard's images.

    None where it is not done, its marker is damaged, or a result is not what was written: gone, cut, or of another run.
    """
    found = _read_marker(shard)
    return found[0] if found and _is_whole(shard, *found) else None


def _is_whole(shard: Shard, outcomes: Sequence[Outcome], digests: Mapping[str, str]) -> bool:
    paths = _list_results(shard, outcomes)
    return all(path.is_file() and sha256_of(path) == digests.get(path.name) for path in paths)


def is_done(shard: Shard) -> bool:
    """Return whether there is nothing left to do: what did not fail by its file alone is tried again."""
    outcomes = read_marker(shard)
    return outcomes is not None and not any(each.fault and not each.is_lasting for each in outcomes)


def runtime_of(shard: Shard) -> Path:
    """Return the file that says what the networks of these results ran on."""
    return shard.out / MARKERS / f"{shard.key}.runtime.json"


def collect(shards: Sequence[Shard], out: Path) -> tuple[int, list[str]]:
    """Write the tables of the whole, and return how many images there are, and the faults of those that failed.

    `manifest.csv` has a line for each image: file, image, status (done, failed), error, nuclei, seconds. `nuclei.csv`
    has those of all images' own tables, in order. Of images, their names alone are in memory at once.

    Raises:
        InputError: a shard is not done, or two images share their results.
    """
    names: dict[str, Path] = {}
    missing = []
    for shard in shards:
        found = _read_marker(shard)
        for each in found[0] if found else ():
            if names.setdefault(each.name, each.path) != each.path:
                raise InputError(
                    f"{each.path}: its results would be named {each.name}, as those of {names[each.name]}; use another "
                    "--out"
                )
        if not found or not _is_whole(shard, *found):
            missing.append(shard)
    if missing:
        raise InputError(
            f"{out}: {len(missing)} of {len(shards)} shards are not done, the first with {missing[0].paths[0]}; run "
            "the same command to go on"
        )
    faults = []

    def list_images() -> Iterator[tuple[object, ...]]:
        for each in _read_outcomes(shards):
            if each.fault:
                faults.append(each.fault)
            status = "failed" if each.fault else "done"
            yield each.path, each.name, status, each.fault, each.nuclei, f"{each.seconds:.3f}"

    images = _write_table(out / MANIFEST, ("file", "image", "status", "error", "nuclei", "seconds"), list_images())
    header = ("image", "label", "area_px", "row", "column")
    _write_table(out / TABLE, header, _read_nuclei(_read_outcomes(shards), out))
    return images, faults


def _read_outcomes(shards: Sequence[Shard]) -> Iterator[Outcome]:
    for shard in shards:
        if found := _read_marker(shard):
            yield from found[0]


def _read_nuclei(outcomes: Iterable[Outcome], out: Path) -> Iterator[tuple[str, ...]]:
    for each in outcomes:
        if not each.fault:
            with (out / f"{each.name}.nuclei.csv").open(newline="") as file:
                rows = csv.reader(file)
                next(rows)
                yield from ((each.name, *row) for row in rows)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
    """Write a CSV, and return how many rows it has."""
    count = 0
    with atomic_path(path) as partial, partial.open("wb") as raw:
        # A file's name may be no text.
        file = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(row)
            count += 1
        file.flush()
        file.detach()
    return count


def list_faults(faults: Sequence[str], files: int) -> InputError:
    """Return the error that names the images that failed, some of many, of so many files."""
    return join_faults(faults, f"{len(faults)} images are left out; the others of {files} files are done")
