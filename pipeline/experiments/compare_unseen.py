"""Runs ranked by what they find of acquisitions that training lacks, and whether a difference is more than chance.

In: each run's AP by cluster, as its cv.json holds it, the first being the baseline. Out: an `UnseenComparison`, and its
plain text. Clusters count alike and are what is resampled: would a difference hold on other acquisitions?
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.experiments.compare import align_rows, format_score
from pipeline.experiments.statistics import LEVEL, paired_bootstrap
from pipeline.experiments.unseen import FEWEST_CLUSTERS, MEASURE, unseen_map
from pipeline.params import EvaluateParams


@dataclass(frozen=True)
class UnseenDifference:
    """A run less the baseline, on the clusters that both have; no interval (None) where they are too few."""

    name: str
    baseline: str
    mean: float
    low: float | None
    high: float | None
    clusters: dict[str, float]
    notes: tuple[str, ...]
    verdict: str


@dataclass(frozen=True)
class UnseenComparison:
    """Each run's number of clusters and `unseen_map`, best first, and every later run's difference to the first."""

    runs: tuple[tuple[str, int, float], ...]
    differences: tuple[UnseenDifference, ...]


def compare_unseen(runs: Mapping[str, Mapping[str, float]], params: EvaluateParams) -> UnseenComparison:
    """Rank the runs in `runs` (name: AP by cluster), and compare each to the first.

    Raises:
        InputError: the yardstick was not measured for a run, or a run has no cluster in common with the first.
    """
    if lacking := [name for name, clusters in runs.items() if not clusters]:
        raise InputError(
            f"{', '.join(lacking)}: no unseen_map in cv.json; `{MEASURE}` measures the full run's own parameters, "
            "with `--setting NAME -S KEY=VALUE` others, and `dvc repro` then notes it; a kept run has what was noted "
            "before, and none that learns from other images than it is scored on"
        )
    found = [(name, len(clusters), unseen_map(clusters) or 0.0) for name, clusters in runs.items()]
    baseline, *others = runs
    return UnseenComparison(
        runs=tuple(sorted(found, key=lambda run: -run[2])),
        differences=tuple(_compare_pair(baseline, runs[baseline], name, runs[name], params) for name in others),
    )


def _compare_pair(
    baseline: str, first: Mapping[str, float], name: str, second: Mapping[str, float], params: EvaluateParams
) -> UnseenDifference:
    common = sorted(first.keys() & second.keys())
    if not common:
        raise InputError(f"{name} and {baseline} have no cluster in common; `{MEASURE}` measures both anew")
    only = {one: sorted(own.keys() - set(common)) for one, own in ((baseline, first), (name, second))}
    notes = tuple(f"only {one} has {', '.join(rest)}" for one, rest in only.items() if rest)
    pairs = [first[key] for key in common], [second[key] for key in common]
    clusters = dict(zip(common, (b - a for a, b in zip(*pairs, strict=True)), strict=True))
    mean, low, high = sum(clusters.values()) / len(clusters), None, None
    if len(common) >= FEWEST_CLUSTERS:
        mean, low, high = paired_bootstrap(*pairs, common, params.bootstrap, params.seed)
    verdict = judge_unseen(baseline, name, mean, low, high)
    return UnseenDifference(name, baseline, mean, low, high, clusters, notes, verdict)


def judge_unseen(baseline: str, name: str, mean: float, low: float | None, high: float | None) -> str:
    """Return in words what the difference `mean` (name less baseline) with its interval, if any, allows to say."""
    if low is None or high is None:
        few = f"common clusters are fewer than {FEWEST_CLUSTERS}: too few to tell them apart"
        return f"{name} less {baseline} is {mean:+z.3f}; {few}"
    if mean == low == high == 0:
        return f"{name} and {baseline} score the common clusters alike: no difference"
    spread = f"{100 * LEVEL:.0f} % interval {low:+z.3f} .. {high:+z.3f} over clusters"
    if low <= 0 <= high:
        return f"{name} and {baseline} are not distinguishable: the difference is {mean:+z.3f} ({spread})"
    word = "better" if mean > 0 else "worse"
    return f"{name} is {word} than {baseline} on unseen acquisitions: {mean:+z.3f} ({spread})"


def format_unseen(comparison: UnseenComparison) -> str:
    """Return the comparison as plain text: a table of runs, best first, then each run's difference to the first."""
    rows = [["run", "clusters", "unseen_map"]]
    rows += [[name, str(clusters), format_score(score)] for name, clusters, score in comparison.runs]
    lines = align_rows(rows)
    for one in comparison.differences:
        lines += ["", f"{one.name} less {one.baseline}, paired on {len(one.clusters)} clusters"]
        lines += [f"  note: {note}" for note in one.notes]
        lines += align_rows([[f"  {cluster}", f"{value:+z.3f}"] for cluster, value in one.clusters.items()])
        lines.append(f"  {one.verdict}")
    return "\n".join(lines) + "\n"
