"""Trees as arrays: scikit-learn's own prediction, bit for bit."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from pipeline.nuclei.trees import Trees, take_trees


@pytest.mark.parametrize(("leaves", "trees"), [(31, 50), (2, 3), (200, 5)])
def test_they_predict_what_they_were_taken_from_to_the_last_bit(leaves: int, trees: int) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3000, 6)).astype(np.float32).round(1)  # many of them on a threshold
    worth = rows[:, 0] * rows[:, 1] + np.sin(rows[:, 2]) + rng.normal(size=len(rows)) / 4
    model = HistGradientBoostingRegressor(
        max_iter=trees, max_leaf_nodes=leaves, min_samples_leaf=5, early_stopping=False, random_state=0
    )
    taken = take_trees(model.fit(rows, worth))
    others = rng.normal(size=(1000, 6)).astype(np.float32)
    for asked in (rows, others, others * 1e30, rows[:1], rows[:256], rows[:257]):
        np.testing.assert_array_equal(taken.predict(asked), model.predict(asked))


def test_trees_that_learnt_nothing_are_their_start() -> None:
    rows = np.ones((30, 2), np.float32)
    taken = take_trees(HistGradientBoostingRegressor(max_iter=3, early_stopping=False).fit(rows, np.full(30, 0.25)))
    np.testing.assert_array_equal(taken.predict(rows), np.full(30, 0.25))


def test_a_tree_by_hand() -> None:
    # Column 1 up to 2 gives 10 on top of the start, more gives 20.
    tree = Trees(
        start=np.array([0.5]), roots=np.array([0], np.int32), feature=np.array([1, 0, 0], np.int32),
        threshold=np.array([2.0, np.inf, np.inf]), children=np.array([[1, 2], [1, 1], [2, 2]], np.int32),
        value=np.array([0.0, 10.0, 20.0]), depth=np.array([1]),
    )  # fmt: skip
    rows = np.array([[9, 2], [9, 2.1], [0, -5]], np.float32)
    np.testing.assert_array_equal(tree.predict(rows), [10.5, 20.5, 10.5])
    assert tree.predict(rows[:0]).shape == (0,)
