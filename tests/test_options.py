"""What the entry of a table is told is checked against what stands beside it; a refusal names key, value and cure."""

from typing import Annotated

import pytest
from pydantic import Field

from pipeline.errors import InputError
from pipeline.options import Section, bind_options, check_section


def weigh(value: float, *, gamma: Annotated[float, Field(ge=0)], steps: int = 3) -> float:
    return value * gamma + steps


class Depth(Section):
    depth: Annotated[int, Field(ge=2)]


def test_options_are_filled_in_and_the_rest_is_left_to_the_caller():
    assert bind_options(weigh, {"gamma": 2.0, "steps": 1}, "loss.terms.weigh")(10.0) == 21.0
    assert bind_options(abs, {}, "x")(-1) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 2.0}, "loss.terms.weigh.steps: missing; its keys are gamma, steps"),
        ({"gamma": 2.0, "steps": 1, "gama": 2}, "loss.terms.weigh.gama: no such key; its keys are gamma, steps"),
        ({"gamma": -1.0, "steps": 1}, "loss.terms.weigh.gamma: .* equal to 0, got -1.0"),
        ({"gamma": 1.0, "steps": 1.5}, "loss.terms.weigh.steps: .*integer.*, got 1.5"),
        ({"gamma": 1.0, "steps": 1, "value": 2.0}, "loss.terms.weigh.value: no such key"),
    ],
)
def test_an_option_that_is_unknown_missing_or_out_of_bounds_is_named(options, message):
    with pytest.raises(InputError, match=rf"params\.yaml: {message}"):
        bind_options(weigh, options, "loss.terms.weigh")


def test_a_section_is_checked_by_its_class():
    assert check_section(Depth, {"depth": 4}, "unet") == Depth(depth=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"depth": 1}, r"unet\.depth: .*, got 1; its keys are depth"),
        ({}, r"unet\.depth: .*required.*; its keys are depth"),
        ({"depth": 4, "width": 2}, r"unet\.width: no such key; its keys are depth"),
    ],
)
def test_a_key_of_a_section_that_is_wrong_is_named(content, message):
    with pytest.raises(InputError, match=rf"params\.yaml: {message}"):
        check_section(Depth, content, "unet")
