"""Fold scores that can be believed: what is reported of nuclei that were found with what the other folds chose.

In: the matches of every image's nuclei, and the zooms at which images were seen. Out: a table with a row per image, and
a summary of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.diameter import equivalent_diameter, zooms_to_size
from pipeline.experiments.statistics import bootstrap_interval
from pipeline.nuclei.metric import THRESHOLDS_PERCENT, Matches, average_precision, pooled_average_precision
from pipeline.params import EvaluateParams, SizeParams

AP_COLUMNS = [f"ap{percent}" for percent in THRESHOLDS_PERCENT]


class Evaluation(NamedTuple):
    """A cross-validation's result.

    Attributes:
        scores: image_id, group, fold, image_type, ap and ap50 .. ap95; a row per image, as `scores.csv` holds it.
        summary: as `cv.json` holds it.
    """

    scores: pd.DataFrame
    summary: dict[str, Any]


def evaluate(
    images: pd.DataFrame,
    decoded: Sequence[Matches],
    found: Sequence[Matches],
    zooms: Mapping[str, float],
    size: SizeParams,
    params: EvaluateParams,
) -> Evaluation:
    """Return the scores of a cross-validation, and their summary.

    Args:
        images: image_id, group, fold, image_type, and median_area_px in px, 0 where there is no nucleus; a row per
            image.
        decoded: the matches of what one decoding finds in each image, in the order of `images`; for `one_decoding_map`.
        found: the matches of the nuclei themselves, in the same order.
        zooms: of each image, at which it was predicted.
        size: what `zooms` should have brought nuclei to.
        params: how the uncertainty is found.
    """
    scores = tabulate_scores(images, found)
    summary = summarize_scores(scores, found, params)
    summary["one_decoding_map"] = float(tabulate_scores(images, decoded)["ap"].mean())
    return Evaluation(scores, summary | describe_sizes(images, zooms, size))


def tabulate_scores(images: pd.DataFrame, counts: Sequence[Matches]) -> pd.DataFrame:
    """Return `images` (image_id, group, fold, image_type) with the columns ap and ap50 .. ap95 of their matches."""
    precision = np.array([average_precision(matches) for matches in counts])
    scores = images[["image_id", "group", "fold", "image_type"]].reset_index(drop=True)
    scores["ap"] = precision.mean(axis=1)
    return pd.concat([scores, pd.DataFrame(precision, columns=AP_COLUMNS)], axis=1)


def summarize_scores(scores: pd.DataFrame, counts: Sequence[Matches], params: EvaluateParams) -> dict[str, Any]:
    """Return the cross-validation's summary, as `cv.json` holds it.

    `cv_map` is the mean over images; `cv_std` the standard deviation (n - 1) of the folds' means; `cv_low` and
    `cv_high` a 95 % bootstrap interval over groups; `pooled_ap` counts all images' nuclei together, as StarDist does.
    """
    low, high = bootstrap_interval(scores["ap"], scores["group"], params.bootstrap, params.seed)
    folds = scores.groupby("fold")["ap"].mean()
    return {
        "cv_map": float(scores["ap"].mean()),
        "cv_std": float(folds.std(ddof=1)),
        "cv_low": low,
        "cv_high": high,
        "pooled_ap": float(pooled_average_precision(counts).mean()),
        "images": len(scores),
        "folds": {str(fold): float(value) for fold, value in folds.items()},
        "image_types": {str(name): float(value) for name, value in scores.groupby("image_type")["ap"].mean().items()},
        "thresholds": {name.removeprefix("ap"): float(scores[name].mean()) for name in AP_COLUMNS},
    }


def describe_sizes(images: pd.DataFrame, zooms: Mapping[str, float], size: SizeParams) -> dict[str, float]:
    """Return how well the size of nuclei was estimated: median and 90th percentile of the error in octaves.

    Args:
        images: image_id and median_area_px; images without nuclei are left out.
        zooms: of each image, which bring its median nucleus to `object_diameter_px`.
        size: with that diameter; where it is 0 nothing was estimated, and the result is empty.
    """
    has_nuclei = images[images["median_area_px"] > 0]
    if size.object_diameter_px == 0 or has_nuclei.empty:
        return {}
    wanted = zooms_to_size(equivalent_diameter(has_nuclei["median_area_px"].to_numpy(float)), size)
    error = np.abs(np.log2(has_nuclei["image_id"].map(zooms).to_numpy(float) / wanted))
    return {"size_error_octaves": float(np.median(error)), "size_error_octaves_p90": float(np.quantile(error, 0.9))}


def format_fold_table(scores: pd.DataFrame, summary: dict[str, Any]) -> str:
    """Return the fold scores as text: a row per fold, then mean and standard deviation; a column per image type."""
    table = scores.pivot_table("ap", "fold", "image_type", aggfunc="mean")
    table.insert(0, "images", scores.groupby("fold").size())
    table.insert(1, "mAP", scores.groupby("fold")["ap"].mean())
    mean = table.drop(columns="images").mean()
    std = table.drop(columns="images").std(ddof=1)
    body = table.rename(index=str)
    body.loc["mean"], body.loc["std"] = mean, std
    body["images"] = [f"{value:.0f}" if value == value else "" for value in body["images"]]
    text = body.to_string(float_format=lambda value: f"{value:.3f}", na_rep="-")
    cv = {name: f"{summary[name]:.3f}" for name in ("cv_map", "cv_std", "cv_low", "cv_high", "pooled_ap")}
    return (
        f"{text}\n\ncross-fitted CV over {summary['images']} images: {cv['cv_map']} +- {cv['cv_std']} "
        f"(95 % interval {cv['cv_low']} .. {cv['cv_high']}; pooled AP {cv['pooled_ap']})"
    )
