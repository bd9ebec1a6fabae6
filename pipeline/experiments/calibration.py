"""The score of images that nobody has labelled, from signals of how well their nuclei were found.

In: tables of images of known score with their signals: those that networks had seen nothing like (`folds/known.csv`),
and a run's own. Out: for any images with signals a score each, their mean, and an interval. A linear fit, since there
are few acquisitions to learn from. Whatever is left of an acquisition, once the fit is taken away, its images share:
that is the larger part of the interval. An image in which nothing was found has no signals to go by: 0 is
expected of it, which is what it scores unless it has no nucleus, with an interval as wide as any other's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student_t
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from pipeline.experiments.statistics import LEVEL

# Of `pipeline/nuclei/signals.py`, those by which the fit is made: what the second level thinks of its nuclei, whether
# zooms and decodings agree, and how clear the masks are. Chosen once, by three of the thirteen clusters.
SIGNALS = ("worth", "worth_spread", "agreement", "least_agreement", "image_doubt")
_PENALTIES = np.logspace(-2, 4, 13)  # of the ridge, chosen by cross-validation over acquisitions
_FOLDS = 5
FEWEST = 3  # known acquisitions that a calibration is fitted on


class Expected(NamedTuple):
    """A mean score to expect, and its 95 % interval, in [0, 1]."""

    mean: float
    low: float
    high: float


class _Line(NamedTuple):
    """What scores follow from signals: (len(SIGNALS),) weights, and what is added."""

    weights: NDArray[np.float64]
    bias: float

    def score(self, signals: pd.DataFrame) -> NDArray[np.float64]:
        scores = np.clip(signals[list(SIGNALS)].to_numpy(np.float64) @ self.weights + self.bias, 0, 1)
        return np.where(has_found(signals), scores, 0.0)


@dataclass(frozen=True)
class Calibration:
    """What scores follow from signals, and how far off that is where it was not fitted.

    Attributes:
        line: the fit.
        image_std: how far images lie from it, within an acquisition.
        acquisition_std: how far acquisitions do.
        acquisitions: how many this was measured on; all that the fit is off by itself, their images share.
        quantile: how many standard deviations on each side hold 95 %.
    """

    line: _Line
    image_std: float
    acquisition_std: float
    acquisitions: int
    quantile: float

    def score_images(self, signals: pd.DataFrame) -> pd.DataFrame:
        """Return image_id, expected, low and high of each image, in [0, 1]: a score and its prediction interval.

        Args:
            signals: image_id, and a column for each of SIGNALS.
        """
        expected = self.line.score(signals)
        half_width = self.quantile * float(np.sqrt(self._acquisition_variance(1.0) + self.image_std**2))
        bounds = {"low": (expected - half_width).clip(0), "high": (expected + half_width).clip(max=1)}
        return pd.DataFrame({"image_id": signals["image_id"].to_numpy(), "expected": expected, **bounds})

    def expect(self, signals: pd.DataFrame, acquisitions: pd.Series) -> Expected:
        """Return the mean score to expect of some images, at least one; `acquisitions` says which each one is of."""
        mean = float(self.line.score(signals).mean())
        shares = acquisitions.value_counts(normalize=True).to_numpy()
        variance = self._acquisition_variance(float((shares**2).sum())) + self.image_std**2 / len(signals)
        half_width = self.quantile * float(np.sqrt(variance))
        return Expected(mean, max(0.0, mean - half_width), min(1.0, mean + half_width))

    def _acquisition_variance(self, share: float) -> float:
        """Return what acquisitions add whose squared shares of the images sum to `share`, and what the fit does."""
        return self.acquisition_std**2 * (share + 1 / self.acquisitions)


def fit_calibration(known: pd.DataFrame, own: pd.DataFrame) -> Calibration:
    """Fit scores to signals by ridge regression; each acquisition has the same say, whatever its number of images.

    How far off the fit is, is measured on each known acquisition by a fit to the other known ones, with the penalty
    that suits all of them.

    Args:
        known: images whose likes the networks had not seen: ap, the columns SIGNALS, acquisition, of which there are
            FEWEST at least, and case: what of an acquisition is alike, such as its blurred images.
        own: images of a run's cross-validation: ap, the columns SIGNALS, acquisition.
    """
    known, own = known[has_found(known)], own[has_found(own)]
    parts, penalty = [], _choose_penalty(known)
    for acquisition, left_out in known.groupby("acquisition"):
        line = _fit(known[known["acquisition"] != acquisition], penalty)
        parts.append(left_out[["acquisition", "case"]].assign(residual=left_out["ap"] - line.score(left_out)))
    residuals = pd.concat(parts)
    by_case = residuals.groupby(["acquisition", "case"])["residual"]
    squares = float(((residuals["residual"] - by_case.transform("mean")) ** 2).sum())
    image_variance = squares / max(len(residuals) - by_case.ngroups, 1)
    # What chance alone makes of the mean of so many images is no matter of the acquisition.
    shared = (by_case.mean() ** 2 - image_variance / by_case.size()).groupby("acquisition").mean()
    acquisition_variance = max(0.0, float(shared.mean()))
    quantile = float(student_t.ppf((1 + LEVEL) / 2, len(shared) - 1))
    together = pd.concat([known, own], ignore_index=True)
    line = _fit(together, _choose_penalty(together))
    return Calibration(line, image_variance**0.5, acquisition_variance**0.5, len(shared), quantile)


def has_found(signals: pd.DataFrame) -> pd.Series:
    """Return of which images at least one nucleus was found: nothing else is worth more than 0."""
    return signals["worth"] > 0


def _choose_penalty(images: pd.DataFrame) -> float:
    """Return the penalty of the ridge that foretells left-out acquisitions best."""
    groups = images["acquisition"]
    splits = list(GroupKFold(min(_FOLDS, groups.nunique())).split(images, groups=groups))
    errors = []
    for penalty in _PENALTIES:
        missed = 0.0
        for learnt, left_out in splits:
            own = images.iloc[left_out]
            residuals = own["ap"] - _fit(images.iloc[learnt], penalty).score(own)
            missed += float(np.sum(_weigh(own["acquisition"]) * residuals**2))
        errors.append(missed)
    return float(_PENALTIES[int(np.argmin(errors))])


def _fit(images: pd.DataFrame, penalty: float) -> _Line:
    values, weights = images[list(SIGNALS)].to_numpy(np.float64), _weigh(images["acquisition"])
    mean = np.average(values, axis=0, weights=weights)
    std = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
    std[std == 0] = 1
    ridge: Any = Ridge(penalty).fit((values - mean) / std, images["ap"].to_numpy(np.float64), sample_weight=weights)
    slopes = ridge.coef_ / std
    return _Line(slopes, float(ridge.intercept_ - mean @ slopes))


def _weigh(acquisitions: pd.Series) -> NDArray[np.float64]:
    """Return the weight of each image, by which every acquisition has the same."""
    return 1 / acquisitions.map(acquisitions.value_counts()).to_numpy(np.float64)


def judge_calibration(known: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Return what is expected of each case by what the other acquisitions taught, and its network's seen images.

    Args:
        known: as of `fit_calibration`, one acquisition more.
        seen: images whose likes a network had seen, as a run has those of its cross-validation: as `own` there, and
            left_out: the acquisition that this network had not seen.

    Returns:
        case, acquisition, images, ap (the truth), expected, low and high, and constant: the seen images' score less
        what the other acquisitions lose on average.
    """
    rows = []
    truth, seen_ap = known.groupby(["acquisition", "case"])["ap"].mean(), seen.groupby("left_out")["ap"].mean()
    lost = (truth.index.get_level_values("acquisition").map(seen_ap).to_numpy() - truth).groupby("acquisition").mean()
    for acquisition, left_out in known.groupby("acquisition"):
        others = known[known["acquisition"] != acquisition]
        calibration = fit_calibration(others, seen[seen["left_out"] == acquisition])
        drop = float(lost.drop(acquisition).mean())
        for case, images in left_out.groupby("case"):
            expected = calibration.expect(images, images["acquisition"])
            row = {"case": case, "acquisition": acquisition, "images": len(images), "ap": images["ap"].mean()}
            row |= {"expected": expected.mean, "low": expected.low, "high": expected.high}
            rows.append(row | {"constant": seen_ap[acquisition] - drop})
    return pd.DataFrame(rows)


def list_cases(known: pd.DataFrame) -> pd.DataFrame:
    """Return the images whose likes a network had not seen, with `acquisition` and `case`.

    Args:
        known: as `folds/known.csv` has them: cluster, image_id (of a probe `PROBE/IMAGE_ID`), is_seen.
    """
    left_out = known[~known["is_seen"]]
    probe = left_out["image_id"].str.rpartition("/")[0]
    return left_out.assign(acquisition=left_out["cluster"], case=(left_out["cluster"] + " " + probe).str.strip())
