"""What is handed out of one member with four folds and four shares, for tests."""

from types import SimpleNamespace

from pipeline.engine.work import list_work

FOLD, SHARE = list_work(("main",), SimpleNamespace(ids=range(4)), SimpleNamespace(test_shares=range(4)))
