"""Borders that continue each other, and which of them to believe.

In: the borders of images of one shape. Out: pairs of images that lie side by side in one field.

Two tiles join where the right border of one continues in the left border of the other (or bottom in top). Three things
are asked: the step across the seam is no larger than the steps inside the two tiles, at every scale (`ratio`); the
borders correlate more than chance allows (`evidence`); and each side has one partner only. Borders of dark background
say little, so weak seams count only where four tiles close a ring (two by two), which adds up its seams' evidence. How
much that must be, the images tell themselves: the same borders read backwards are decoys, which fit by chance alone.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import norm

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.integer[Any]]
Ring = tuple[int, int, int, int]  # the positions of four tiles, a b over c d

# Measured on stage1_train, whose 117 groups of four were found right by eye. Varied one at a time (step cost 1 to 4,
# chance rings 1e-4 to 3e-3, ring ratio 2.2 to 3, lone evidence 5 to 7, strongest 7 to 12) at most five groups move.
_SCALES = 4  # means of 1, 4, 16 and 64 pixels: a wrong seam over noise shows only in the means of many
_NEIGHBOURS = 24  # candidates per border that are looked at closely; with 4 a true group is split
_FITTING = 16  # of those that fit, the ones kept for rings; there are more only where borders are dark
_STEP_FLOOR = 0.02  # in square roots of grey values: below the step that rounding to 8 bit makes
_STRONGEST = 9.0  # evidence above this counts no more, so that one seam never carries a ring
_STEP_COST = 1.0  # evidence that a seam in a ring loses for each unit of ratio above 1
_RING_RATIO = 2.3  # a seam with a larger step is none
_CHANCE_RINGS = 3e-3  # rings expected by chance, at most
_LEAST_EVIDENCE = 0.5  # asked of a ring even where no decoys fit
_LONE_RATIO, _LONE_EVIDENCE = 1.7, 6.0  # 2 or 4 pairs of decoys of 223,000 pass, all among 256x256 borders


class Seams(NamedTuple):
    """Candidates for seams that fit, one per element: `first`'s right (bottom) meets `second`'s left (top)."""

    first: Indices
    second: Indices
    ratio: Floats  # step across the seam over the steps beside it, the worst of all scales; about 1 for a true seam
    evidence: Floats  # standard deviations of the borders' correlation above chance


def find_pairs(right: Floats, left: Floats, bottom: Floats, top: Floats) -> Indices:
    """Return the pairs, (n, 2), of images that lie side by side, or one above the other, in one field.

    Args:
        right, left, bottom, top: the borders of N images of one shape, (N, 2, L, C), square roots of grey values (they
            even out photon noise): the outermost line, then the one next to it.
    """
    across, down = match_borders(right, left), match_borders(bottom, top)
    decoys_across, decoys_down = match_borders(right, left[:, :, ::-1]), match_borders(bottom, top[:, :, ::-1])
    chance = sum(ring[0] >= 0 for fit in ((decoys_across, down), (across, decoys_down)) for ring in find_rings(*fit))
    return choose_seams(across, down, evidence_needed(chance))


def match_borders(ends: Floats, starts: Floats) -> Seams:
    """Weigh the likeliest continuations of each of `ends` among `starts`.

    Args:
        ends: (N, 2, L, C), the last line of N images, then the line before it.
        starts: the same for the first line of the same images, then the line after it.
    """
    n, _, length, _ = ends.shape
    looks = [_means(lines[:, 0].mean(axis=2, keepdims=True), length // 16)[..., 0] for lines in (ends, starts)]
    k = min(_NEIGHBOURS, n)
    there = cKDTree(looks[1]).query(looks[0], k)[1].reshape(n, k)
    back = cKDTree(looks[0]).query(looks[1], k)[1].reshape(n, k)
    own = np.repeat(np.arange(n), k)
    codes = np.unique(np.concatenate([own * n + there.ravel(), back.ravel() * n + own]))
    pairs = np.stack(np.divmod(codes, n), axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    ratio = np.concatenate([_seam_ratio(ends[p[:, 0]], starts[p[:, 1]]) for p in cut_pairs(pairs)])
    pairs, ratio = pairs[ratio <= _RING_RATIO], ratio[ratio <= _RING_RATIO]
    profiles = [normalise(_detrended(lines[:, 0].mean(axis=2))) for lines in (ends, starts)]
    evidence = np.concatenate([_evidence(profiles[0][p[:, 0]], profiles[1][p[:, 1]]) for p in cut_pairs(pairs)])
    return Seams(pairs[:, 0], pairs[:, 1], ratio, evidence)


def evidence_needed(chance: int) -> float:
    """Return the evidence that a ring needs where `chance` rings of decoys fit with an evidence above 0.

    By chance a ring has more than e across, and as independently down, with a probability of sf(e)^2, sf being the
    normal distribution's survival function; of rings above 0 that is the share 4 sf(e)^2.
    """
    share = min(1.0, _CHANCE_RINGS / max(chance, 1))
    return max(_LEAST_EVIDENCE, float(norm.isf(np.sqrt(share) / 2)) if chance else 0.0)


def choose_seams(across: Seams, down: Seams, needed: float) -> Indices:
    """Return the pairs, (n, 2), that hold: rings of four first, then strong seams alone, the best evidence first.

    A ring must have the evidence `needed`. Every side of an image gets at most one partner.
    """
    partners: dict[tuple[str, int], int] = {}

    def join(seams: list[tuple[str, int, int]]) -> None:
        """Join all of `seams` (direction, first, second), unless one of their sides has another partner."""
        if all(partners.get((d, a), b) == b and partners.get((f"back {d}", b), a) == a for d, a, b in seams):
            partners.update({(d, a): b for d, a, b in seams} | {(f"back {d}", b): a for d, a, b in seams})

    rings = [ring for ring in find_rings(across, down) if ring[0] >= needed]
    for _, (a, b, c, d) in sorted(rings, key=lambda ring: (-ring[0], ring[1])):
        join([("across", a, b), ("across", c, d), ("down", a, c), ("down", b, d)])
    lone = [
        (-evidence, direction, first, second)
        for direction, seams in (("across", across), ("down", down))
        for first, second, ratio, evidence in _rows(seams)
        if evidence >= _LONE_EVIDENCE and ratio <= _LONE_RATIO
    ]
    for _, direction, first, second in sorted(lone):
        join([(direction, first, second)])
    pairs = [(a, b) for (direction, a), b in partners.items() if not direction.startswith("back")]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def find_rings(across: Seams, down: Seams) -> Iterator[tuple[float, Ring]]:
    """Yield the rings that fit, each with its evidence: that of its seams across or down, whichever is less."""
    right, below = _lookup(across), _lookup(down)
    for a, beside in right.items():
        for b, c in product(beside, below.get(a, ())):
            for d in right.get(c, {}).keys() & below.get(b, {}).keys():
                if len({a, b, c, d}) == 4:
                    weaker = min(beside[b] + right[c][d], below[a][c] + below[b][d])
                    # The sum of two independent standard normal values has a standard deviation of sqrt(2).
                    yield weaker / 2**0.5, (a, b, c, d)


def _lookup(seams: Seams) -> dict[int, dict[int, float]]:
    """Return the best seams' evidence, cut at the strongest that counts and less for a large step, by both images."""
    table: dict[int, dict[int, float]] = defaultdict(dict)
    strength = np.minimum(seams.evidence, _STRONGEST) - _STEP_COST * np.maximum(seams.ratio - 1, 0)
    for i in np.argsort(-strength, kind="stable"):
        first, second = int(seams.first[i]), int(seams.second[i])
        if len(table[first]) < _FITTING:
            table[first][second] = float(strength[i])
    return table


def _rows(seams: Seams) -> Iterator[tuple[int, int, float, float]]:
    yield from zip(*(column.tolist() for column in seams), strict=True)


def _seam_ratio(ends: Floats, starts: Floats) -> Floats:
    """Return, for each of n pairs of borders (n, 2, L, C), the step across over the steps beside, the worst scale's."""
    worst = np.zeros(len(ends))
    for _ in range(_SCALES):
        beside = (_power(ends[:, 0] - ends[:, 1]) + _power(starts[:, 0] - starts[:, 1])) / 2
        across = _power(ends[:, 0] - starts[:, 0])
        worst = np.maximum(worst, np.sqrt((across + _STEP_FLOOR**2) / (beside + _STEP_FLOOR**2)))
        ends, starts = _means(ends, 4), _means(starts, 4)
    return worst


def _evidence(ends: Floats, starts: Floats) -> Floats:
    """Return each pair's correlation, in standard deviations of what unrelated profiles of their smoothness give.

    Args:
        ends: (n, L) profiles of zero mean and norm 1, or all 0; `starts` likewise.

    Source: Fisher's z transform of the correlation; its variance for autocorrelated series is Bartlett's, 1935,
        "Some aspects of the time-correlation problem", doi:10.2307/2980725: sum of the products of autocorrelations.
    """
    length = ends.shape[1]
    spectra = [np.abs(np.fft.rfft(profiles, 2 * length)) ** 2 for profiles in (ends, starts)]
    own = [np.fft.irfft(spectrum)[:, :length] for spectrum in spectra]
    products = own[0] * own[1]
    variance = (2 * products.sum(axis=1) - products[:, 0]) / length
    correlation = np.clip(np.einsum("nl,nl->n", ends, starts), -0.9999, 0.9999)  # keeps the transform finite
    return np.arctanh(correlation) / np.sqrt(np.maximum(variance, 1 / length))


def _means(lines: Floats, scale: int) -> Floats:
    """Return the means over `scale` pixels of lines (..., L, C), one mean at least; a rest at the end is left out."""
    scale = min(scale, lines.shape[-2])
    count = lines.shape[-2] // scale
    return lines[..., : count * scale, :].reshape(*lines.shape[:-2], count, scale, lines.shape[-1]).mean(axis=-2)


def _power(lines: Floats) -> Floats:
    return (lines**2).mean(axis=(1, 2))


def _detrended(profiles: Floats) -> Floats:
    """Take a straight line off each of the profiles (n, L): uneven lighting is alike in unrelated images."""
    slope = np.linspace(-1, 1, profiles.shape[1])
    slope /= np.linalg.norm(slope)
    centred = profiles - profiles.mean(axis=1, keepdims=True)
    return centred - np.outer(centred @ slope, slope)


def normalise(profiles: Floats) -> Floats:
    """Scale each of the profiles (n, L) to zero mean and norm 1; one without structure becomes all 0."""
    centred = profiles - profiles.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-4 * np.sqrt(profiles.shape[1]))


def cut_pairs(pairs: Indices) -> Iterator[Indices]:
    """Cut pairs into parts of at most 1,024 (at least one part, maybe empty), so that memory stays bounded."""
    yield from np.array_split(pairs, len(pairs) // 1024 + 1)
