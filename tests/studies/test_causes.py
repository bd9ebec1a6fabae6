"""What costs points: each cause by hand, and what mending it gains."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.nuclei.metric import score, tabulate_overlap
from pipeline.studies.causes import (
    ALL,
    CAUSES,
    INVENTED,
    MERGED,
    MISFIT,
    MISSED,
    OUTLINE,
    SIZES,
    SPLIT,
    find_mistakes,
    list_gains,
    mend,
)

Ids = NDArray[np.int32]


def draw(*boxes: tuple[int, int, int, int]) -> Ids:
    """Return a label map of boxes: top, left, bottom, right; the later on top."""
    label_map = np.zeros((40, 100), np.int32)
    for label, (top, left, bottom, right) in enumerate(boxes, 1):
        label_map[top:bottom, left:right] = label
    return label_map


# Each with one more nucleus that is found to the pixel.
FOUND = (30, 80, 40, 90)
PAIRS = {
    "found": (draw(FOUND), draw(FOUND), [], []),
    MISSED: (draw(FOUND, (0, 0, 10, 10)), draw(FOUND), [MISSED], []),
    INVENTED: (draw(FOUND), draw(FOUND, (0, 0, 10, 10)), [], [INVENTED]),
    MISFIT: (draw(FOUND, (0, 0, 10, 10)), draw(FOUND, (0, 0, 10, 30)), [MISFIT], [MISFIT]),
    MERGED: (
        draw(FOUND, (0, 0, 10, 10), (0, 10, 10, 20)), draw(FOUND, (0, 0, 10, 20)), [MERGED, MERGED], [MERGED]
    ),
    SPLIT: (draw(FOUND, (0, 0, 10, 20)), draw(FOUND, (0, 0, 10, 10), (0, 10, 10, 20)), [SPLIT], [SPLIT, SPLIT]),
    "a piece of one that was found": (
        draw(FOUND, (0, 0, 10, 20)), draw(FOUND, (0, 0, 10, 16), (0, 16, 10, 20)), [OUTLINE], [SPLIT]
    ),
    "one beside": (draw(FOUND, (0, 0, 10, 10)), draw(FOUND, (9, 9, 19, 19)), [MISSED], [INVENTED]),
}  # fmt: skip


@pytest.mark.parametrize("what", PAIRS)
def test_causes_by_hand(what: str) -> None:
    truth, found, wrong, spare = PAIRS[what]
    mistakes = find_mistakes(tabulate_overlap(truth, found))
    assert mistakes.truth.tolist() == [OUTLINE, *wrong]
    assert mistakes.passed[0] == 10
    assert mistakes.spare.tolist() == spare
    gains = {row["cause"]: row["gain"] for row in list_gains(tabulate_overlap(truth, found)) if row["size"] == ALL}
    for cause in CAUSES:
        if cause in (*wrong, *spare):
            assert gains[cause] > 0
        else:
            assert gains[cause] == 0
    if len({*wrong, *spare}) == 1:
        assert score(truth, found) + gains[(wrong + spare)[0]] == pytest.approx(1)


def test_gains_by_hand_and_by_size() -> None:
    """Of two nuclei one is missed, of 18 px; the other lacks a fifth: IoU 0.8, a hit at six thresholds."""
    truth, found = draw((0, 0, 16, 16), (20, 20, 30, 30)), draw((20, 20, 30, 28))
    rows = {(row["cause"], row["size"]): row for row in list_gains(tabulate_overlap(truth, found))}
    assert score(truth, found) == pytest.approx(0.6 / 2)
    # With it found: two hits of two at six thresholds, and one of three at four.
    assert rows[MISSED, ALL]["gain"] == pytest.approx((6 * 1 + 4 / 3) / 10 - 0.3)
    assert rows[OUTLINE, ALL]["gain"] == pytest.approx(1 / 2 - 0.3)
    assert [rows[MISSED, size]["nuclei"] for size in SIZES] == [0, 1, 0, 0]
    assert [rows[OUTLINE, size]["nuclei"] for size in SIZES] == [0, 1, 0, 0]
    assert rows[INVENTED, ALL]["nuclei"] == rows[INVENTED, ALL]["gain"] == 0


@pytest.mark.parametrize("empty", ["truth", "found", "both"])
def test_images_in_which_nothing_is_or_nothing_was_found(empty: str) -> None:
    truth = draw() if empty in ("truth", "both") else draw((0, 0, 10, 10), FOUND)
    found = draw() if empty in ("found", "both") else draw((0, 0, 10, 10), FOUND)
    gains = {row["cause"]: row for row in list_gains(tabulate_overlap(truth, found)) if row["size"] == ALL}
    assert gains[MISSED]["nuclei"] == (2 if empty == "found" else 0)
    assert gains[INVENTED]["nuclei"] == (2 if empty == "truth" else 0)
    assert sum(row["gain"] for row in gains.values()) == (0 if empty == "both" else 1)


def test_mending_nothing_is_the_score() -> None:
    """Of any two label maps, ids with gaps too; and sizes part what there is of a cause."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, found = (np.kron(rng.integers(0, 4, (6, 6)), np.ones((7, 7), np.int64)) for _ in range(2))
        overlap = tabulate_overlap(truth, found)
        mistakes = find_mistakes(overlap)
        nothing = (np.zeros(len(kind), bool) for kind in (mistakes.truth, mistakes.spare))
        assert mend(mistakes, *nothing) == score(truth, found)
        rows = list(list_gains(overlap))
        for cause in CAUSES:
            own = {row["size"]: row for row in rows if row["cause"] == cause}
            assert own[ALL]["nuclei"] == sum(own[size]["nuclei"] for size in SIZES)
            assert own[ALL]["gain"] >= max(own[size]["gain"] for size in SIZES) >= 0
