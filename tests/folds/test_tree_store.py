"""Stored trees: what was written is read, and what is no trees of this version is refused."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.folds import tree_store
from pipeline.folds.tree_store import read_trees, write_trees
from pipeline.nuclei.candidates import FEATURES
from pipeline.nuclei.fitting import fit_trees
from pipeline.nuclei.trees import Trees
from pipeline.params import Params


@pytest.fixture
def trees(params: Params) -> Trees:
    rng = np.random.default_rng(0)
    features = rng.random((400, len(FEATURES)), np.float32)
    select = params.select.model_copy(update={"trees": 5, "leaf_candidates": 10})
    return fit_trees(features, features[:, 3], np.repeat(np.arange(4), 100), select)


def test_trees_come_back_and_equal_ones_are_equal_files(trees: Trees, tmp_path: Path) -> None:
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    write_trees(one, trees)
    write_trees(other, trees)
    assert one.read_bytes() == other.read_bytes()
    read = read_trees(one)
    assert read is not None
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(read, trees, strict=True))


def test_that_there_are_none_comes_back_too(tmp_path: Path) -> None:
    write_trees(tmp_path / "none.npz", None)
    assert read_trees(tmp_path / "none.npz") is None


def test_trees_of_other_features_are_refused(trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trees(tmp_path / "trees.npz", trees)
    monkeypatch.setattr(tree_store, "FEATURES", (*FEATURES[1:], FEATURES[0]))
    with pytest.raises(InputError, match=r"trees\.npz: trees of other features .*run the stage `evaluate` again"):
        read_trees(tmp_path / "trees.npz")


@pytest.mark.parametrize("part", ["roots", "feature", "children", "depth"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_one_node_that_leads_nowhere_is_enough_to_refuse_all(
    trees: Trees, part: str, value: int, tmp_path: Path
) -> None:
    damaged = getattr(trees, part).copy()
    damaged.ravel()[-1] = value
    write_trees(tmp_path / "trees.npz", trees._replace(**{part: damaged}))
    with pytest.raises(InputError, match=r"trees\.npz: its nodes do not make trees; run the stage `evaluate` again"):
        read_trees(tmp_path / "trees.npz")


@pytest.mark.parametrize("part", Trees._fields)
def test_arrays_that_do_not_belong_together_are_refused(trees: Trees, part: str, tmp_path: Path) -> None:
    longer = np.concatenate([getattr(trees, part), np.zeros_like(getattr(trees, part)[:1])])
    write_trees(tmp_path / "trees.npz", trees._replace(**{part: longer}))
    if part == "roots":  # one more tree, of a node that is there
        assert read_trees(tmp_path / "trees.npz") is not None
        return
    with pytest.raises(InputError, match="its nodes do not make trees"):
        read_trees(tmp_path / "trees.npz")


def test_a_missing_or_cut_file_is_refused(trees: Trees, tmp_path: Path) -> None:
    path = tmp_path / "trees.npz"
    with pytest.raises(InputError, match=r"trees\.npz: not a readable pack"):
        read_trees(path)
    write_trees(path, trees)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"trees\.npz: not a readable pack"):
        read_trees(path)
