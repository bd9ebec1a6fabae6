"""The score to expect on a test set whose truth nobody has: the cross-validation, made to look like that test set.

In: the cross-validation's scores, and tables of the training and the test images. Out: a score and its interval. Fold
scores promise too much for two reasons that can be seen without the truth: the test set has another mix of image types,
and some of its images come from acquisitions (a microscope, a stain, a frame size) that training has never seen.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.experiments.statistics import bootstrap_interval
from pipeline.params import EvaluateParams

_NORMAL_95 = 1.96  # standard deviations on each side that hold 95 %
# An interval by resampling groups needs two of them.
_LEAST_GROUPS = 2


class Expectation(NamedTuple):
    """The score to expect.

    Attributes:
        expected, low, high: the score, and a 95 % interval.
        reweighted: what would be expected if training had seen every acquisition of the test set.
        unseen_share: of the test images, those of acquisitions that training lacks.
    """

    expected: float
    low: float
    high: float
    reweighted: float
    unseen_share: float


def expect_leaderboard(
    scores: pd.DataFrame, train: pd.DataFrame, test: pd.DataFrame, params: EvaluateParams
) -> Expectation:
    """Return the CV, reweighted to the test's image types, less what is lost on acquisitions that training lacks.

    An acquisition is told by its image type and frame size, both found from the images. A type that training lacks
    counts as the mean of the others; where those are fewer than two groups of images, the plain CV is taken. The
    interval covers how well the CV is known from these images, what chance does to the mean of so few test images, and
    how much the drop differs from one acquisition to the next. It does not cover that the second-level model learnt
    from single networks and rates the mean of several.

    Args:
        scores: image_id, group, image_type and ap of the cross-validation.
        train: image_type, height and width of the training images.
        test: the same of the test images.
        params: `unseen_drop` is the drop, `unseen_drop_std` its spread.

    Source: post-stratification; Holt & Smith, Journal of the Royal Statistical Society A 142 (1979) 33.
    """
    share = test.loc[test["image_type"].isin(scores["image_type"]), "image_type"].value_counts(normalize=True)
    used = scores[scores["image_type"].isin(share.index)]
    have = used["image_type"].value_counts(normalize=True)
    weights = used["image_type"].map(share / have).to_numpy(float)
    if used["group"].nunique() < _LEAST_GROUPS:
        used, weights = scores, np.ones(len(scores))
    low, high = bootstrap_interval(used["ap"], used["group"], params.bootstrap, params.seed, weights)
    reweighted = float(np.average(used["ap"], weights=weights))
    variance = float(np.average((used["ap"] - reweighted) ** 2, weights=weights))
    by_chance = _NORMAL_95 * np.sqrt(variance / max(len(test), 1))
    unseen = test[~name_acquisitions(test).isin(name_acquisitions(train))]
    unseen_share = len(unseen) / max(len(test), 1)
    acquisitions = max(1, name_acquisitions(unseen).nunique())
    by_acquisition = _NORMAL_95 * unseen_share * params.unseen_drop_std / np.sqrt(acquisitions)
    expected = reweighted - unseen_share * params.unseen_drop
    reach = float(np.sqrt(((high - low) / 2) ** 2 + by_chance**2 + by_acquisition**2))
    middle, least, most = np.clip([expected, expected - reach, expected + reach], 0, 1).tolist()
    return Expectation(middle, least, most, reweighted, unseen_share)


def name_acquisitions(images: pd.DataFrame) -> pd.Series:
    """Return what each image's acquisition is called, such as `fluorescence 256x320`: its type and frame size."""
    return images["image_type"] + " " + images["height"].astype(str) + "x" + images["width"].astype(str)
