"""The score to expect on a test set whose truth nobody has, image by image.

In: signals of how well the nuclei of its images were found, the same of the cross-validation's images with their
scores, and those of images of known score whose likes a network had not seen. Out: a score and its interval, of the
test set and of each image. What is expected follows from the signals alone: which images training has seen the like of
need not be known.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.experiments.calibration import SIGNALS, fit_calibration, list_cases
from pipeline.experiments.statistics import bootstrap_interval
from pipeline.params import EvaluateParams
from pipeline.tables import read_csv_table

_NORMAL_95 = 1.96  # standard deviations on each side that hold 95 %
# An interval by resampling groups needs two of them.
_LEAST_GROUPS = 2


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
    """Return what the test images will score, by a fit to the run's own images and to known cases.

    Images without signals, as large ones, count as the mean of the others. Where no image has any, the
    cross-validation's score is expected, and the interval covers how well that is known and what chance does to the
    mean of so few images. No interval covers that the second-level model learnt from single networks and rates the
    mean of several.

    Args:
        test: image_id, image_type, height, width, and the columns SIGNALS, NaN where an image has none.
        own: the same of the cross-validation's images, with ap and group.
        known: as `read_known` returns it.
        params: of the bootstrap.
    """
    rated, learnt = test.dropna(subset=SIGNALS), own.dropna(subset=SIGNALS)
    images = test[["image_id"]].reset_index(drop=True)
    if rated.empty or learnt.empty:
        return Expectation(
            *_expect_plain(own, len(test), params), images.assign(expected=np.nan, low=np.nan, high=np.nan)
        )
    acquisition = name_acquisitions(learnt)
    cases = pd.concat([list_cases(known), learnt.assign(acquisition=acquisition, case=acquisition)], ignore_index=True)
    calibration = fit_calibration(cases)
    mean = calibration.expect(rated, name_acquisitions(rated))
    return Expectation(*mean, images.merge(calibration.expect_each(rated), on="image_id", how="left"))


def _expect_plain(own: pd.DataFrame, count: int, params: EvaluateParams) -> tuple[float, float, float]:
    """Return the cross-validation's score, and an interval for the mean of `count` other images."""
    mean, by_chance = float(own["ap"].mean()), _NORMAL_95 * float(own["ap"].std(ddof=0)) / np.sqrt(max(count, 1))
    by_groups = 0.0
    if own["group"].nunique() >= _LEAST_GROUPS:
        low, high = bootstrap_interval(own["ap"], own["group"], params.bootstrap, params.seed)
        by_groups = (high - low) / 2
    reach = float(np.hypot(by_groups, by_chance))
    return mean, max(0.0, mean - reach), min(1.0, mean + reach)


def name_acquisitions(images: pd.DataFrame) -> pd.Series:
    """Return what each image's acquisition is called, such as `fluorescence 256x320`: its type and frame size."""
    return images["image_type"] + " " + images["height"].astype(str) + "x" + images["width"].astype(str)


def read_known(path: Path) -> pd.DataFrame:
    """Read the images of known score: cluster, image_id, is_seen (bool), ap, and the columns SIGNALS.

    Raises:
        InputError: the file is missing or damaged.
    """
    columns = {"cluster": str, "image_id": str, "is_seen": str, "ap": float} | dict.fromkeys(SIGNALS, float)
    table = read_csv_table(path, columns, "restore it with `git checkout`", "table of known scores")
    return table.assign(is_seen=table["is_seen"] == "True")


def read_signals(path: Path) -> pd.DataFrame:
    """Read image_id and the columns SIGNALS that the stage `evaluate` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    columns = {"image_id": str} | dict.fromkeys(SIGNALS, float)
    return read_csv_table(path, columns, "run the stage `evaluate` again", "table of signals")
