"""Fitted trees as arrays: they execute nothing, need no library to predict, and predict what scikit-learn's do, bit
for bit.

In: a fitted regressor of gradient-boosted trees. Out: a handful of arrays, and by them a number for each row.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

_ROWS = 256  # at a time, so that what a step reads and writes stays in the cache


class Trees(NamedTuple):
    """Gradient-boosted trees, whose prediction is `start` and a value of each tree's leaf.

    The arrays have an entry for each node of every tree. A row begins at each tree's root and goes `depth` steps: from
    a node to the first of its children where the row's feature is not above the threshold, else to the second. A leaf
    is its own child.

    Attributes:
        start: (1,) float64, what is predicted before the first tree.
        roots: (trees,) int32.
        feature: (nodes,) int32, a column.
        threshold: (nodes,) float64.
        children: (nodes, 2) int32.
        value: (nodes,) float64, of leaves.
        depth: (1,) int64, steps of the longest way.
    """

    start: NDArray[np.float64]
    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    children: NDArray[np.int32]
    value: NDArray[np.float64]
    depth: NDArray[np.int64]

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return a number (n,) float64 for each of `rows` (n, columns), which are finite."""
        return np.concatenate(
            [np.zeros(0), *(self._predict(rows[at : at + _ROWS]) for at in range(0, len(rows), _ROWS))]
        )

    def _predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        values, children = rows.ravel(), self.children.ravel()
        first = np.repeat(np.arange(len(rows), dtype=np.int32) * rows.shape[1], len(self.roots))
        node = np.tile(self.roots, len(rows))
        for _ in range(int(self.depth[0])):
            node = children[2 * node + (values[first + self.feature[node]] > self.threshold[node])]
        predicted = np.full(len(rows), self.start[0])
        for of_tree in self.value[node].reshape(len(rows), -1).T:  # one by one: the order decides the last bits
            predicted += of_tree
        return predicted


def take_trees(model: "HistGradientBoostingRegressor") -> Trees:
    """Return the trees of a fitted regressor of finite numbers: no missing values, no categories."""
    trees = [tree.nodes for (tree,) in model._predictors]
    ends = np.cumsum([len(nodes) for nodes in trees])
    roots = (ends - [len(nodes) for nodes in trees]).astype(np.int32)
    nodes = np.concatenate(trees)
    is_leaf = nodes["is_leaf"].astype(bool)
    children = np.stack([nodes["left"], nodes["right"]], axis=1) + np.repeat(roots, [*map(len, trees)])[:, None]
    return Trees(
        start=np.ravel(model._baseline_prediction).astype(np.float64),
        roots=roots,
        feature=np.where(is_leaf, 0, nodes["feature_idx"]).astype(np.int32),
        threshold=np.where(is_leaf, np.inf, nodes["num_threshold"]),
        children=np.where(is_leaf[:, None], np.arange(len(nodes))[:, None], children).astype(np.int32),
        value=nodes["value"],
        depth=nodes["depth"].max(keepdims=True).astype(np.int64),
    )
