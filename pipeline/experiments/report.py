"""The report: one HTML file that says how well a run does, and shows it. It works offline and holds no script.

In: the run's scores, its run card, what test images are expected to score, the histories of training, and pictures of
the images that `choose_examples` names. Out: the page, the same bytes for the same input.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.experiments.figures import (
    encode_image,
    list_thresholds,
    plot_learning_curves,
    plot_thresholds,
    trace_outlines,
)
from pipeline.experiments.unseen import unseen_clusters, unseen_map
from pipeline.files import write_text
from pipeline.images.contrast import brighten_image

# The columns of the tables beside the mean AP: a loose, a strict and a very strict overlap.
_SHOWN = ("ap50", "ap75", "ap90")

_CV_KEYS = ("cv_map", "cv_std", "cv_low", "cv_high", "pooled_ap")
_CARD_KEYS = (
    *("expected_lb", "expected_lb_low", "expected_lb_high", "lb_map", "threads", "seed"),
    *("params", "digests", "versions"),
)

_LOWEST = 10  # images of the test set that are shown, those that are expected to score least

# How a number that is not known is written.
_NONE = "\N{EN DASH}"


class Picture(NamedTuple):
    """An image (H, W, 3) uint8 RGB with its true and predicted label maps, (H, W), 0 background."""

    image_id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.integer]
    predicted: NDArray[np.integer]


@dataclass(frozen=True)
class Example:
    """An image that stands for its type: the best, the median or the worst of it, or the only one."""

    image_id: str
    image_type: str
    role: str
    fold: int
    ap: float


def choose_examples(scores: pd.DataFrame) -> list[Example]:
    """Return the best, median and worst image of each type, types by their number of images, most first.

    Images of equal score are taken by image_id. A type of two images has no median, a type of one only itself.
    """
    counts = scores["image_type"].value_counts()
    examples = []
    for image_type in sorted(counts.index, key=lambda name: (-counts[name], name)):
        table = scores[scores["image_type"] == image_type].sort_values(["ap", "image_id"], ascending=[False, True])
        last = len(table) - 1
        places = {0: "best", last // 2: "median", last: "worst"} if last > 1 else {0: "best", last: "worst"}
        for place, role in places.items() if last else [(0, "only image")]:
            row = table.iloc[place]
            examples.append(Example(row["image_id"], image_type, role, int(row["fold"]), float(row["ap"])))
    return examples


def write_report(
    path: Path,
    scores: pd.DataFrame,
    cv: Mapping[str, Any],
    card: Mapping[str, Any],
    expected: pd.DataFrame,
    histories: Mapping[str, pd.DataFrame],
    pictures: Iterable[tuple[str, NDArray[Any], NDArray[Any], NDArray[Any]]],
    submission: str,
) -> None:
    """Write the report to `path`, atomically.

    Args:
        path: of the HTML file.
        scores: image_id, fold, image_type, ap, ap50 .. ap95; a row per image.
        cv: as in cv.json; cv_map, cv_std, cv_low, cv_high and pooled_ap are shown, `unseen` where it is measured, and
            what it says of members where there are several.
        card: the run card.
        expected: image_id, expected, low and high of the test images; the lowest are shown.
        histories: of each training, by fold, or by member and fold: epoch, loss, and val_map where it was looked at.
        pictures: as in `Picture`, of the images that `choose_examples` names, in any order; taken one at a time.
        submission: where the submission is, as the reader shall read it.

    Raises:
        InputError: an example has no picture, a picture's parts differ in size, or cv or card lacks a key, or
            `unseen` is no table of clusters.
    """
    _check_keys("cv.json", cv, _CV_KEYS)
    _check_keys("the run card", card, _CARD_KEYS)
    unseen = unseen_clusters(cv, "cv.json")
    drawn = {picture.image_id: _draw_picture(picture) for picture in (Picture(*parts) for parts in pictures)}
    examples: dict[str, list[dict[str, Any]]] = {}
    for example in choose_examples(scores):
        if example.image_id not in drawn:
            raise InputError(f"{example.image_id}: no picture of it was given; the report needs every example's")
        examples.setdefault(example.image_type, []).append({"example": example, **drawn[example.image_id]})
    template = make_environment().from_string(_read_template())
    page = template.render(
        cv=cv,
        card=card,
        submission=submission,
        lowest=expected.dropna(subset=["expected"]).nsmallest(_LOWEST, "expected").to_dict("records"),
        unseen=unseen,
        members=cv.get("members"),
        unseen_map=unseen_map(unseen),
        images=len(scores),
        columns=[column for column in _SHOWN if column in list_thresholds(scores)],
        folds=_tabulate(scores, "fold"),
        types=sorted(_tabulate(scores, "image_type"), key=lambda row: -row["images"]),
        everything=_tabulate(scores.assign(all=0), "all")[0],
        fold_std=scores.groupby("fold")[["ap", *list_thresholds(scores)]].mean().std().to_dict(),
        thresholds=Markup(plot_thresholds(scores)),
        curves=Markup(plot_learning_curves(histories)) if histories else None,
        examples=examples,
    )
    write_text(path, page)


def _check_keys(name: str, content: Mapping[str, Any], keys: Iterable[str]) -> None:
    missing = [key for key in keys if key not in content]
    if missing:
        raise InputError(f"{name} lacks {', '.join(missing)}; run `dvc repro` to write it again")


def make_environment() -> jinja2.Environment:
    """Return the template environment: everything is escaped, a name that is not there is an error."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "score": format_score,
        "gain": format_gain,
        "words": lambda name: str(name).replace("_", " "),
        "json": lambda content: json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, default=str),
    }
    return environment


def format_score(value: float | None) -> str:
    """Return the number with three decimals, a dash where there is none."""
    return _NONE if value is None or not np.isfinite(value) else f"{value:.3f}"


def format_gain(value: float | None) -> str:
    """Return the difference with its sign and three decimals, a dash where there is none."""
    return _NONE if value is None or not np.isfinite(value) else f"{value:+z.3f}"


def _read_template() -> str:
    return files("pipeline.experiments").joinpath("report.html.j2").read_text(encoding="utf-8")


def _tabulate(scores: pd.DataFrame, key: str) -> list[dict[str, Any]]:
    """Return a row for each value of `key`: its name, its number of images, and the mean of every score."""
    columns = ["ap", *list_thresholds(scores)]
    groups = scores.groupby(key)
    means = groups[columns].mean().assign(images=groups.size())
    return [{"name": name, **row} for name, row in means.to_dict("index").items()]


def _draw_picture(picture: Picture) -> dict[str, Any]:
    shapes = {part.shape[:2] for part in picture[1:]}
    if len(shapes) > 1:
        raise InputError(f"{picture.image_id}: image and label maps differ in size ({sorted(shapes)}); predict it anew")
    image, brightened = brighten_image(picture.image)
    return {
        "image": encode_image(image),
        "height": picture.image.shape[0],
        "width": picture.image.shape[1],
        "brightened": brightened,
        "truth": trace_outlines(picture.truth),
        "predicted": trace_outlines(picture.predicted),
        "truth_count": len(np.unique(picture.truth[picture.truth > 0])),
        "predicted_count": len(np.unique(picture.predicted[picture.predicted > 0])),
    }
