"""What is handed out, by DVC's names and by place; and the order of dvc.lock."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.engine.checkout import order_lock
from pipeline.engine.work import list_work
from pipeline.errors import InputError

FOLDS, SHARES = list_work(("main", "wide"), SimpleNamespace(ids=(0, 1)), SimpleNamespace(test_shares=(0,)))


def test_items_are_those_of_each_member_in_turn():
    assert list(FOLDS.items) == ["main-0", "main-1", "wide-0", "wide-1"]
    assert list(SHARES.items) == ["main-0", "wide-0"]
    assert FOLDS.targets(["wide-1"]) == ["train@wide-1", "size@wide-1", "predict_oof@wide-1"]


@pytest.mark.parametrize(("text", "item"), [("wide-0", "wide-0"), ("0", "main-0"), ("3", "wide-1")])
def test_an_item_goes_by_its_name_or_its_place(text, item):
    assert FOLDS.find(text) == item


@pytest.mark.parametrize("text", ["4", "-1", "wide", "main-2", ""])
def test_what_is_no_item_is_refused(text):
    with pytest.raises(InputError, match=rf"^--fold {text}: none is called so; give one of main-0, main-1, wide-0"):
        FOLDS.find(text)


def test_the_lock_file_has_the_order_of_stages_members_and_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("stages: {train: {}, size: {}, submit: {}}")
    Path("params.yaml").write_text("member_ids: [wide, main]")
    names = ["submit", "size@main-0", "train@main-10", "train@0", "train@gone-0", "train@main-2", "train@wide-0"]
    Path("dvc.lock").write_text("schema: '2.0'\nstages:\n" + "".join(f"  {name}:\n    cmd: x\n" for name in names))
    order_lock()
    found = [line.strip().rstrip(":") for line in Path("dvc.lock").read_text().splitlines() if line.startswith("  t")]
    assert found == ["train@wide-0", "train@main-2", "train@main-10", "train@0", "train@gone-0"]
    assert Path("dvc.lock").read_text().rstrip().endswith("submit:\n    cmd: x")
