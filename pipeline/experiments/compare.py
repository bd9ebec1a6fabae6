"""Fold scores of runs side by side, and whether a difference between them is more than chance.

In: score tables as `load_run` reads them, the first being the baseline. Out: a `Comparison`, and its plain text.
Two questions are asked of a difference. Would it hold on other images? A bootstrap over groups of the paired
per-image differences answers. Would it hold after training again on other images? The corrected test over folds does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.errors import InputError
from pipeline.experiments.statistics import LEVEL, corrected_paired_test, paired_bootstrap
from pipeline.params import EvaluateParams


@dataclass(frozen=True)
class RunScores:
    """One run: mean `ap` over its images, per fold too, and the standard deviation over folds (k - 1; nan for one).

    `unseen_map` is what the yardstick for unseen acquisitions found for its parameters; None where it was not measured.
    """

    name: str
    images: int
    mean: float
    std: float
    folds: dict[int, float]
    unseen_map: float | None = None


@dataclass(frozen=True)
class Difference:
    """A run less the baseline, on the images that both have. What could not be found is None or empty; see `notes`."""

    name: str
    baseline: str
    images: int
    mean: float
    low: float | None
    high: float | None
    t: float | None
    p: float | None
    folds: dict[int, float]
    types: dict[str, tuple[float, int]]  # image type: mean difference, number of images
    notes: tuple[str, ...]
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Every run's scores, and every later run's difference to the first."""

    runs: tuple[RunScores, ...]
    differences: tuple[Difference, ...]


def compare_runs(
    frames: Mapping[str, pd.DataFrame], params: EvaluateParams, unseen: Mapping[str, float | None] | None = None
) -> Comparison:
    """Compare the runs in `frames` (name: score table), each to the first.

    `unseen` has each run's unseen_map; it is shown, and decides nothing.

    Raises:
        InputError: no run at all, or a run has no image in common with the first.
    """
    if not frames:
        raise InputError("no run to compare; name one, or run `dvc repro` first")
    baseline, *others = frames
    return Comparison(
        runs=tuple(summarise_run(name, frame, (unseen or {}).get(name)) for name, frame in frames.items()),
        differences=tuple(compare_pair(baseline, frames[baseline], name, frames[name], params) for name in others),
    )


def summarise_run(name: str, frame: pd.DataFrame, unseen_map: float | None = None) -> RunScores:
    """Return the run's mean over images, its mean in each fold, and their standard deviation."""
    folds = _mean_by(frame["ap"], frame["fold"])
    return RunScores(name, len(frame), float(frame["ap"].mean()), float(pd.Series(folds).std()), folds, unseen_map)


def compare_pair(
    baseline: str, first: pd.DataFrame, name: str, second: pd.DataFrame, params: EvaluateParams
) -> Difference:
    """Return `second - first`, paired per image.

    Where the runs cut the images into other folds or groups there is no test over folds, and the groups are the
    baseline's.

    Raises:
        InputError: the two have no image in common.
    """
    both = first.merge(second, on="image_id", suffixes=("_first", "_second"))
    if both.empty:
        raise InputError(f"{name} and {baseline} have no image in common; compare runs on the same data")
    delta = both["ap_second"] - both["ap_first"]
    notes = _note_image_sets(baseline, len(first), name, len(second), len(both)) + _note_folds(baseline, both)
    same_folds = both["fold_first"].equals(both["fold_second"]) and both["group_first"].equals(both["group_second"])
    folds = _mean_by(delta, both["fold_first"]) if same_folds else {}
    low = high = statistic = p = None
    if both["group_first"].nunique() > 1:
        _, low, high = paired_bootstrap(
            both["ap_first"], both["ap_second"], both["group_first"], params.bootstrap, params.seed
        )
    if len(folds) > 1:
        statistic, p = corrected_paired_test(list(folds.values()), 1 / first["fold"].nunique())
    counts = both["image_type_first"].value_counts()
    types = {key: (value, int(counts[key])) for key, value in _mean_by(delta, both["image_type_first"]).items()}
    mean = float(delta.mean())
    verdict = judge_difference(baseline, name, mean, low, high, p)
    return Difference(name, baseline, len(both), mean, low, high, statistic, p, folds, types, tuple(notes), verdict)


def _mean_by(values: pd.Series, keys: pd.Series) -> dict[Any, float]:
    return {key: float(value) for key, value in values.groupby(keys).mean().items()}


def _note_image_sets(baseline: str, first: int, name: str, second: int, common: int) -> list[str]:
    if first == common == second:
        return []
    return [
        f"the image sets differ: {first - common} images only in {baseline}, {second - common} only in "
        f"{name}; the {common} common ones are compared"
    ]


def _note_folds(baseline: str, both: pd.DataFrame) -> list[str]:
    moved = int((both["fold_first"] != both["fold_second"]).sum())
    regrouped = int((both["group_first"] != both["group_second"]).sum())
    if not moved and not regrouped:
        return []
    return [
        f"the fold tables differ ({moved} images in another fold, {regrouped} in another group): "
        f"no test over folds; the groups are those of {baseline}"
    ]


def judge_difference(
    baseline: str, name: str, mean: float, low: float | None, high: float | None, p: float | None
) -> str:
    """Return in words what the difference `mean` (name less baseline) with its interval and test allows to say."""
    if low is None or high is None:
        return f"{name} less {baseline} is {mean:+z.3f}, from one group of images: too few to tell them apart"
    if mean == low == high == 0:
        return f"{name} and {baseline} score the common images alike: no difference"
    test = "no test over folds" if p is None else f"corrected p {_format_p(p)}"
    if low <= 0 <= high:
        spread = f"{100 * LEVEL:.0f} % interval {low:+z.3f} .. {high:+z.3f}; {test}"
        return f"{name} and {baseline} are not distinguishable: the difference is {mean:+z.3f} ({spread})"
    word, nearer, farther = ("better", low, high) if mean > 0 else ("worse", -high, -low)
    spread = f"{100 * LEVEL:.0f} % interval {nearer:.3f} .. {farther:.3f}; {test}"
    claim = f"{name} is {word} than {baseline} by {abs(mean):.3f} ({spread})"
    if p is None:
        return f"{claim}: the images support the difference; folds were not tested"
    if p < 1 - LEVEL:
        return f"{claim}: the difference is supported"
    return f"{claim}: the images support the difference, the folds do not yet; train more folds or seeds to settle it"


def _format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def format_comparison(comparison: Comparison) -> str:
    """Return the comparison as plain text: a table of runs, then each run's difference to the first."""
    folds = sorted({fold for run in comparison.runs for fold in run.folds})
    rows = [["run", "images", *(f"fold {fold}" for fold in folds), "mean", "+- std"]]
    is_measured = any(run.unseen_map is not None for run in comparison.runs)
    rows[0] += ["unseen_map"] * is_measured
    for run in comparison.runs:
        means = [format_score(run.folds.get(fold)) for fold in folds]
        rows.append([run.name, str(run.images), *means, format_score(run.mean), format_score(run.std)])
        rows[-1] += [format_score(run.unseen_map)] * is_measured
    lines = align_rows(rows)
    for difference in comparison.differences:
        lines += ["", *_format_difference(difference)]
    return "\n".join(lines) + "\n"


def _format_difference(difference: Difference) -> list[str]:
    lines = [f"{difference.name} less {difference.baseline}, paired on {difference.images} images"]
    lines += [f"  note: {note}" for note in difference.notes]
    rows = [[f"  fold {fold}", f"{value:+z.3f}"] for fold, value in difference.folds.items()]
    rows += [[f"  {name}", f"{value:+z.3f}", f"{count} images"] for name, (value, count) in difference.types.items()]
    return [*lines, *align_rows(rows), f"  {difference.verdict}"]


def format_score(value: float | None) -> str:
    """Return a score with three decimals, a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.3f}"


def align_rows(rows: list[list[str]]) -> list[str]:
    """Return the rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
