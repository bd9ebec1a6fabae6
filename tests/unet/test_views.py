"""Views: each undoes itself, together they are the group of the square's symmetries."""

from itertools import product

import pytest
import torch

from pipeline.unet.views import D4_VIEWS, FLIP_VIEWS, views_of

X = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
SQUARE = torch.arange(9).reshape(1, 1, 3, 3)


@pytest.mark.parametrize("view", D4_VIEWS, ids=lambda view: view.name)
def test_invert_undoes_apply_on_a_batch_that_is_not_square(view):
    assert view.invert(view.apply(X)).equal(X)
    assert view.apply(view.invert(X)).equal(X)


def test_the_eight_are_distinct():
    assert len({tuple(view.apply(SQUARE).flatten().tolist()) for view in D4_VIEWS}) == 8
    assert len({view.name for view in D4_VIEWS}) == 8


@pytest.mark.parametrize("views", [FLIP_VIEWS, D4_VIEWS], ids=["flips", "d4"])
def test_views_are_closed_as_a_group(views):
    images = {tuple(view.apply(SQUARE).flatten().tolist()) for view in views}
    for first, second in product(views, views):
        assert tuple(second.apply(first.apply(SQUARE)).flatten().tolist()) in images


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("identity", lambda x: x),
        ("left-right", lambda x: x.flip(-1)),
        ("up-down", lambda x: x.flip(-2)),
        ("half turn", lambda x: x.flip(-1, -2)),
        ("transpose", lambda x: x.mT),
        ("anti-transpose", lambda x: x.mT.flip(-1, -2)),
        ("quarter turn left", lambda x: torch.rot90(x, 1, (-2, -1))),
        ("quarter turn right", lambda x: torch.rot90(x, -1, (-2, -1))),
    ],
)
def test_names_say_what_happens(name, expected):
    view = next(view for view in D4_VIEWS if view.name == name)
    assert view.apply(X).equal(expected(X))


def test_views_of_params():
    assert [len(views_of(kind)) for kind in ("identity", "flips", "d4")] == [1, 4, 8]
    assert all(view.apply(X).shape == X.shape for view in views_of("flips"))
    assert set(FLIP_VIEWS) < set(D4_VIEWS)
