"""What runs are compared by: `compare --by` names an entry of COMPARISONS.

In: runs by their names, the first being the baseline. Out: plain text.
"""

from collections.abc import Callable, Mapping

from pipeline.experiments.compare import compare_runs, format_comparison
from pipeline.experiments.compare_unseen import compare_unseen, format_unseen
from pipeline.experiments.runs import Run
from pipeline.experiments.unseen import unseen_clusters, unseen_map
from pipeline.params import EvaluateParams


def describe_cv(runs: Mapping[str, Run], params: EvaluateParams) -> str:
    """Return the comparison of the fold scores of runs by their names, as plain text."""
    frames = {name: run.scores for name, run in runs.items()}
    unseen = {name: unseen_map(clusters) for name, clusters in _clusters_of(runs).items()}
    return format_comparison(compare_runs(frames, params, unseen))


def describe_unseen(runs: Mapping[str, Run], params: EvaluateParams) -> str:
    """Return the comparison of what runs by their names find of unseen acquisitions, as plain text."""
    return format_unseen(compare_unseen(_clusters_of(runs), params))


def _clusters_of(runs: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    return {name: unseen_clusters(run.summary, f"{name}, cv.json") for name, run in runs.items()}


COMPARISONS: dict[str, Callable[[Mapping[str, Run], EvaluateParams], str]] = {
    "cv": describe_cv,
    "unseen": describe_unseen,
}
