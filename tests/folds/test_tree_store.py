"""Stored trees: what was written is read, and what is no trees of this version is refused."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.folds import tree_store
from pipeline.folds.tree_store import read_trees, write_trees
from pipeline.nuclei.candidates import FEATURES
from pipeline.nuclei.fitting import fit_model
from pipeline.nuclei.trees import Trees
from pipeline.params import Params


@pytest.fixture
def trees(params: Params) -> Trees:
    rng = np.random.default_rng(0)
    features = rng.random((400, len(FEATURES)), np.float32)
    select = params.select.model_copy(update={"trees": 5, "leaf_candidates": 10})
    return fit_model(features, features[:, 3], np.repeat(np.arange(4), 100), select)


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


@pytest.mark.parametrize("part", ["roots", "feature", "children", "value"])
def test_nodes_that_are_not_there_are_refused(trees: Trees, part: str, tmp_path: Path) -> None:
    write_trees(tmp_path / "trees.npz", trees._replace(**{part: getattr(trees, part) + 10**6}))
    if part == "value":
        assert read_trees(tmp_path / "trees.npz") is not None
        return
    with pytest.raises(InputError, match=r"trees\.npz: holds no trees .*run the stage `evaluate` again"):
        read_trees(tmp_path / "trees.npz")


def test_a_missing_or_cut_file_is_refused(trees: Trees, tmp_path: Path) -> None:
    path = tmp_path / "trees.npz"
    with pytest.raises(InputError, match=r"trees\.npz: not a readable pack"):
        read_trees(path)
    write_trees(path, trees)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"trees\.npz: not a readable pack"):
        read_trees(path)
