"""The score of images that nobody has labelled, from signals of how well their nuclei were found.

In: a table of images of known score with their signals, acquisition by acquisition, found by networks that had seen
nothing like them (`pipeline/studies/results/expected.csv`). Out: for any images with signals a score each, their mean,
and an interval. A linear fit, since there are few acquisitions to learn from. Whatever is left of an acquisition, once
the fit is taken away, its images share: that is the larger part of the interval.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold

# Of `pipeline/nuclei/signals.py`, those by which the fit is made.
SIGNALS = ("worth", "worth_spread", "agreement", "least_agreement", "image_doubt")
_PENALTIES = np.logspace(-2, 4, 13)  # of the ridge, chosen by cross-validation over acquisitions
_FOLDS = 5
_NORMAL_95 = 1.96  # standard deviations on each side that hold 95 %


class Expected(NamedTuple):
    """A mean score to expect, and its 95 % interval, in [0, 1]."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """What scores follow from signals.

    Attributes:
        weights: (len(SIGNALS),), of the signals.
        bias: what is added.
        image_std: how far images lie from the fit, within an acquisition.
        acquisition_std: how far acquisitions do.
    """

    weights: NDArray[np.float64]
    bias: float
    image_std: float
    acquisition_std: float

    def score_images(self, signals: pd.DataFrame) -> NDArray[np.float64]:
        """Return the score (n,) in [0, 1] to expect of images; `signals` has a column for each of SIGNALS."""
        return np.clip(signals[list(SIGNALS)].to_numpy(np.float64) @ self.weights + self.bias, 0, 1)

    def expect(self, signals: pd.DataFrame, acquisitions: pd.Series) -> Expected:
        """Return the mean score to expect of some images, at least one; `acquisitions` says which each one is of."""
        mean = float(self.score_images(signals).mean())
        shares = acquisitions.value_counts(normalize=True).to_numpy()
        variance = self.acquisition_std**2 * float((shares**2).sum()) + self.image_std**2 / len(signals)
        reach = _NORMAL_95 * float(np.sqrt(variance))
        return Expected(mean, max(0.0, mean - reach), min(1.0, mean + reach))


def fit_calibration(cases: pd.DataFrame) -> Calibration:
    """Fit scores to signals by ridge regression; each acquisition has the same say, whatever its number of images.

    Args:
        cases: ap, the columns SIGNALS, acquisition, and case: what of an acquisition is alike, such as its blurred
            images.
    """
    values, ap = cases[list(SIGNALS)].to_numpy(np.float64), cases["ap"].to_numpy(np.float64)
    say = 1 / cases["acquisition"].map(cases["acquisition"].value_counts()).to_numpy(np.float64)
    middle = np.average(values, axis=0, weights=say)
    spread = np.sqrt(np.average((values - middle) ** 2, axis=0, weights=say))
    spread[spread == 0] = 1
    groups = cases["acquisition"].nunique()
    split = GroupKFold(min(_FOLDS, groups)).split(values, groups=cases["acquisition"]) if groups > 1 else None
    ridge: Any = RidgeCV(_PENALTIES, cv=split).fit((values - middle) / spread, ap, sample_weight=say)
    weights = ridge.coef_ / spread
    bias = float(ridge.intercept_ - middle @ weights)
    left = cases.assign(left=ap - np.clip(values @ weights + bias, 0, 1)).groupby("case")["left"]
    image_variance = float(left.var(ddof=0).mean())
    # What chance alone makes of the mean of so many images is no matter of the acquisition.
    shared = float((left.mean() ** 2).mean() - (image_variance / left.size()).mean())
    return Calibration(weights, bias, image_variance**0.5, max(0.0, shared) ** 0.5)


def judge_calibration(cases: pd.DataFrame, seen_ap: pd.Series) -> pd.DataFrame:
    """Return what is expected of each case by what the other acquisitions taught.

    Args:
        cases: as of `fit_calibration`.
        seen_ap: by acquisition, the score of images of acquisitions that the same network had seen.

    Returns:
        case, acquisition, images, ap (the truth), expected, low and high, and constant: the seen images' score less
        what the other acquisitions lose on average.
    """
    rows = []
    truth = cases.groupby(["acquisition", "case"])["ap"].mean()
    lost = truth.index.get_level_values("acquisition").map(seen_ap).to_numpy() - truth
    for acquisition, own in cases.groupby("acquisition"):
        calibration = fit_calibration(cases[cases["acquisition"] != acquisition])
        drop = float(lost.drop(acquisition, level="acquisition").mean())
        for case, images in own.groupby("case"):
            expected = calibration.expect(images, images["acquisition"])
            row = {"case": case, "acquisition": acquisition, "images": len(images), "ap": images["ap"].mean()}
            row |= {"expected": expected.mean, "low": expected.low, "high": expected.high}
            rows.append(row | {"constant": seen_ap[acquisition] - drop})
    return pd.DataFrame(rows)
