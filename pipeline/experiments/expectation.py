"""The score to expect on a test set whose truth nobody has, image by image.

In: signals of how well the nuclei of its images were found, the same of the cross-validation's images with their
scores, and those of images of known score whose likes a network had not seen. Out: a score and its interval, of the
test set and of each image. What is expected follows from the signals: which images training has seen the like of need
not be known. Without signals, as where there is no second level, it is the cross-validation's score, which promises too
much wherever a test set has images unlike those of training.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from pipeline.errors import InputError, shorten
from pipeline.experiments.calibration import FEWEST, SIGNALS, fit_calibration, has_found, list_cases
from pipeline.experiments.statistics import LEVEL, bootstrap_interval
from pipeline.images.table import name_acquisitions
from pipeline.params import EvaluateParams
from pipeline.tables import read_csv_table

# An interval by resampling groups needs two of them.
_LEAST_GROUPS = 2
_NUMBERS = ("expected", "low", "high")


class Expectation(NamedTuple):
    """The score to expect.

    Attributes:
        expected, low, high: the mean score of the test set, and its 95 % interval.
        images: image_id, expected, low and high of each image; NaN where it has no signals.
    """

    expected: float
    low: float
    high: float
    images: pd.DataFrame


def expect_leaderboard(
    test: pd.DataFrame, own: pd.DataFrame, known: pd.DataFrame, params: EvaluateParams
) -> Expectation:
    """Return what the test images will score, by a fit to the run's own images and to known ones.

    Images without signals, as large ones, count as the mean of the others, and the interval is of those alone. Where no
    image has any, or known images are of too few acquisitions, the cross-validation's score is expected; its interval
    covers how well that is known and what chance does to the mean of so few images, and nothing of images unlike those
    of training. No interval covers that the second level was fitted on the masks of single networks and rates those of
    the mean of several.

    Args:
        test: image_id, image_type, height, width, and the columns SIGNALS, NaN where an image has none.
        own: the same of the cross-validation's images, with ap and group.
        known: as `read_known` returns it; what it says of test images is not used.
        params: of the bootstrap.
    """
    rated, learnt = test.dropna(subset=SIGNALS), own.dropna(subset=SIGNALS)
    images = test[["image_id"]].reset_index(drop=True)
    cases = list_cases(known[~known["image_id"].str.rpartition("/")[2].isin(test["image_id"])])
    if rated.empty or learnt.empty or cases.loc[has_found(cases), "acquisition"].nunique() < FEWEST:
        unknown = images.assign(**dict.fromkeys(_NUMBERS, np.nan))
        return Expectation(*_expect_plain(own, len(test), params), unknown)
    calibration = fit_calibration(cases, learnt.assign(acquisition=name_acquisitions(learnt)))
    mean = calibration.expect(rated, name_acquisitions(rated))
    return Expectation(*mean, images.merge(calibration.score_images(rated), on="image_id", how="left"))


def _expect_plain(own: pd.DataFrame, count: int, params: EvaluateParams) -> tuple[float, float, float]:
    """Return the cross-validation's score, and an interval for the mean of `count` other images."""
    mean, quantile = float(own["ap"].mean()), float(norm.ppf((1 + LEVEL) / 2))
    by_chance, by_groups = quantile * float(own["ap"].std(ddof=0)) / np.sqrt(max(count, 1)), 0.0
    if own["group"].nunique() >= _LEAST_GROUPS:
        low, high = bootstrap_interval(own["ap"], own["group"], params.bootstrap, params.seed)
        by_groups = (high - low) / 2
    half_width = float(np.hypot(by_groups, by_chance))
    return mean, max(0.0, mean - half_width), min(1.0, mean + half_width)


def read_known(path: Path) -> pd.DataFrame:
    """Read the images of known score: cluster, image_id, is_seen (bool), ap, and the columns SIGNALS.

    Raises:
        InputError: the file is missing or damaged.
    """
    columns = {"cluster": str, "image_id": str, "is_seen": str, "ap": float} | dict.fromkeys(SIGNALS, float)
    cure = "restore it with `git checkout`"
    table = read_csv_table(path, columns, cure, "table of known scores")
    if len(faulty := table[~table["is_seen"].isin(["True", "False"])]):
        row = faulty.iloc[0]
        raise InputError(f"{path}: {row['image_id']} has is_seen {row['is_seen'][:40]!r}, not True or False; {cure}")
    if (twice := table.duplicated(["cluster", "image_id"])).any():
        cluster, name = table.loc[twice, ["cluster", "image_id"]].iloc[0]
        raise InputError(f"{path}: the cluster {cluster} has the image {name!r} twice; {cure}")
    return table.assign(is_seen=table["is_seen"] == "True")


def read_signals(path: Path) -> pd.DataFrame:
    """Read image_id and the columns SIGNALS that the stage `evaluate` wrote.

    Raises:
        InputError: the file is missing or damaged, or has an image twice.
    """
    cure = "run the stage `evaluate` again"
    table = read_csv_table(path, {"image_id": str} | dict.fromkeys(SIGNALS, float), cure, "table of signals")
    if (twice := table["image_id"].duplicated()).any():
        raise InputError(f"{path}: image {table['image_id'][twice].iloc[0]!r} is there twice; {cure}")
    return table


def read_expected(path: Path) -> pd.DataFrame:
    """Read what `submit` expects of the test images: image_id, expected, low and high, NaN where nothing is known.

    Raises:
        InputError: the file is missing or damaged.
    """
    cure = "run the stage `submit` again"
    table = read_csv_table(path, dict.fromkeys(("image_id", *_NUMBERS), str), cure, "table of expected scores")
    try:
        return table.assign(**{name: pd.to_numeric(table[name].replace("", np.nan)) for name in _NUMBERS})
    except ValueError as error:
        raise InputError(f"{path}: not a table of expected scores ({shorten(error)}); {cure}") from error
