"""What a score is worth: intervals by a bootstrap over groups, and a paired test over folds.

In: one number per image with the image's group, or one difference per fold. Out: interval bounds, t and p.
Images of one group (tiles of one field, near-duplicates) resemble one another, so whole groups are resampled:
resampling single images would count the same evidence several times and give intervals that are too narrow.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from pipeline.errors import InputError

# How much an interval promises to cover; the convention of the field, and what every text here calls "95 %".
LEVEL = 0.95


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike,
    resamples: int,
    seed: int,
    weights: ArrayLike | None = None,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Return the percentile interval of the (weighted) mean over images, with whole groups resampled.

    Args:
        values: (n,), any finite number per image.
        groups: (n,), the group of each image: strings or integers.
        resamples: how many times as many groups as there are are drawn, with replacement.
        seed: of the draws; the same seed gives the same interval.
        weights: (n,), above 0, or None for equal weights.
        level: the share of resampled means inside the interval.

    Raises:
        InputError: a value is not finite, a weight is not above 0, or there are fewer than two groups.

    Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), sections 3.8 and 5.3.1.
    """
    value = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(value) if weights is None else np.asarray(weights, dtype=np.float64)
    if not np.isfinite(value).all():
        raise InputError(f"{int((~np.isfinite(value)).sum())} of {value.size} scores are not finite; score them again")
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise InputError("a bootstrap weight is not above 0; leave out the images that shall not count")
    index = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    count = int(index.max(initial=-1)) + 1
    if count < 2:
        raise InputError(f"{count} group of images: an interval needs at least two independent groups")
    sums = np.bincount(index, weights=value * weight)
    sizes = np.bincount(index, weights=weight)
    # How often each group is drawn, (resamples, groups): one matrix product then gives every resampled mean.
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    means = (draws @ sums) / (draws @ sizes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> tuple[float, float, float]:
    """Return the mean of `second - first` over images, and its interval with whole groups resampled.

    Args:
        first: (n,), one score per image.
        second: (n,), the other run's score of the same images in the same order.
        groups: (n,), the group of each image.
        resamples: as in `bootstrap_interval`.
        seed: as in `bootstrap_interval`.
        level: as in `bootstrap_interval`.

    Raises:
        InputError: as in `bootstrap_interval`.
    """
    difference: NDArray[np.float64] = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    low, high = bootstrap_interval(difference, groups, resamples, seed, level=level)
    return float(difference.mean()), low, high


def corrected_paired_test(differences: ArrayLike, test_share: float) -> tuple[float, float]:
    """Return t and the two-sided p of the corrected resampled t-test on per-fold differences.

    Folds share most of their training images, so their scores are not independent and the plain paired test finds
    differences that are not there; the correction adds test/train size to 1/k. With `test_share` 0 it is plain.

    Args:
        differences: (k,), the mean score difference of two runs in each fold.
        test_share: the share of the images that a fold holds out, 1/k in a K-fold; in [0, 1).

    Raises:
        InputError: fewer than two folds, or a share outside [0, 1).

    Source: Nadeau & Bengio, Inference for the Generalization Error, Machine Learning 52 (2003), section 3.
    """
    difference = np.asarray(differences, dtype=np.float64)
    if difference.size < 2:
        raise InputError(f"{difference.size} fold: a paired test needs at least two folds")
    if not 0 <= test_share < 1:
        raise InputError(f"test_share is {test_share}; give the share of images held out, from 0 to below 1")
    mean = float(difference.mean())
    spread = math.sqrt((1 / difference.size + test_share / (1 - test_share)) * float(difference.var(ddof=1)))
    if spread == 0:
        return (0.0, 1.0) if mean == 0 else (math.copysign(math.inf, mean), 0.0)
    statistic = mean / spread
    return statistic, float(2 * student_t.sf(abs(statistic), difference.size - 1))
