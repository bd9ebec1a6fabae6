"""The score of images that nobody has labelled, from signals of how well their nuclei were found.

In: a table of images of known score with their signals, acquisition by acquisition: those that networks had seen
nothing like (`pipeline/studies/results/expected.csv`), and a run's own. Out: for any images with signals a score each,
their mean, and an interval. A linear fit, since there are few acquisitions to learn from. Whatever is left of an
acquisition, once the fit is taken away, its images share: that is the larger part of the interval.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, cross_val_predict

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

    def expect_each(self, signals: pd.DataFrame) -> pd.DataFrame:
        """Return image_id, expected, low and high of each image; `signals` has image_id beside what they are."""
        expected = self.score_images(signals)
        reach = _NORMAL_95 * float(np.hypot(self.acquisition_std, self.image_std))
        bounds = {"low": (expected - reach).clip(0), "high": (expected + reach).clip(max=1)}
        return pd.DataFrame({"image_id": signals["image_id"].to_numpy(), "expected": expected, **bounds})

    def expect(self, signals: pd.DataFrame, acquisitions: pd.Series) -> Expected:
        """Return the mean score to expect of some images, at least one; `acquisitions` says which each one is of."""
        mean = float(self.score_images(signals).mean())
        shares = acquisitions.value_counts(normalize=True).to_numpy()
        variance = self.acquisition_std**2 * float((shares**2).sum()) + self.image_std**2 / len(signals)
        reach = _NORMAL_95 * float(np.sqrt(variance))
        return Expected(mean, max(0.0, mean - reach), min(1.0, mean + reach))


def fit_calibration(cases: pd.DataFrame) -> Calibration:
    """Fit scores to signals by ridge regression; each acquisition has the same say, whatever its number of images.

    How far off the fit is, is measured on each acquisition by a fit to the others.

    Args:
        cases: ap, the columns SIGNALS, acquisition, and case: what of an acquisition is alike, such as its blurred
            images.
    """
    values, ap = cases[list(SIGNALS)].to_numpy(np.float64), cases["ap"].to_numpy(np.float64)
    groups = cases["acquisition"].to_numpy()
    say = 1 / cases["acquisition"].map(cases["acquisition"].value_counts()).to_numpy(np.float64)
    middle = np.average(values, axis=0, weights=say)
    spread = np.sqrt(np.average((values - middle) ** 2, axis=0, weights=say))
    spread[spread == 0] = 1
    scaled, count = (values - middle) / spread, cases["acquisition"].nunique()
    splits = list(GroupKFold(min(_FOLDS, count)).split(values, groups=groups)) if count > 1 else None
    ridge: Any = RidgeCV(_PENALTIES, cv=splits, scoring="neg_mean_squared_error").fit(scaled, ap, sample_weight=say)
    weights = ridge.coef_ / spread
    left = ap - ridge.predict(scaled).clip(0, 1)
    if count > 1:
        own, weighed = Ridge(ridge.alpha_), {"sample_weight": say}
        others = cross_val_predict(own, scaled, ap, groups=groups, cv=LeaveOneGroupOut(), params=weighed)
        left = ap - others.clip(0, 1)
    by_case = pd.Series(left, index=cases.index).groupby(cases["case"])
    image_variance = float(by_case.var(ddof=0).mean())
    # What chance alone makes of the mean of so many images is no matter of the acquisition.
    shared = float((by_case.mean() ** 2).mean() - (image_variance / by_case.size()).mean())
    bias = float(ridge.intercept_ - middle @ weights)
    return Calibration(weights, bias, image_variance**0.5, max(0.0, shared) ** 0.5)


def judge_calibration(cases: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Return what is expected of each case by what the other acquisitions taught, and its network's seen images.

    Args:
        cases: as of `fit_calibration`.
        seen: images whose likes a network had seen, as a run has those of its cross-validation; as `cases`, and
            left_out: the acquisition that this network had not seen.

    Returns:
        case, acquisition, images, ap (the truth), expected, low and high, and constant: the seen images' score less
        what the other acquisitions lose on average.
    """
    rows = []
    truth, seen_ap = cases.groupby(["acquisition", "case"])["ap"].mean(), seen.groupby("left_out")["ap"].mean()
    lost = truth.index.get_level_values("acquisition").map(seen_ap).to_numpy() - truth
    for acquisition, own in cases.groupby("acquisition"):
        others = cases[cases["acquisition"] != acquisition]
        calibration = fit_calibration(pd.concat([others, seen[seen["left_out"] == acquisition]]))
        drop = float(lost.drop(acquisition, level="acquisition").mean())
        for case, images in own.groupby("case"):
            expected = calibration.expect(images, images["acquisition"])
            row = {"case": case, "acquisition": acquisition, "images": len(images), "ap": images["ap"].mean()}
            row |= {"expected": expected.mean, "low": expected.low, "high": expected.high}
            rows.append(row | {"constant": seen_ap[acquisition] - drop})
    return pd.DataFrame(rows)


def list_cases(known: pd.DataFrame) -> pd.DataFrame:
    """Return the images of known score that a network had seen no like of, with `acquisition` and `case`.

    Args:
        known: as `pipeline/studies/results/expected.csv` has them.
    """
    left = known[~known["is_seen"]]
    probe = left["image_id"].str.rpartition("/")[0]
    return left.assign(acquisition=left["cluster"], case=(left["cluster"] + " " + probe).str.strip())
