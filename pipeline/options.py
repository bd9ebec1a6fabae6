"""What values may be: bounds that sections of params.yaml are made of, and what the entry of a table may be told.

The latter is checked where the table is, since params.yaml's sections do not know it.

In: values of params.yaml, and what stands beside an entry: a section's class, or a function's keyword-only parameters,
whose annotations are their bounds. Out: the section, or the function with its options filled in.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.errors import InputError, shorten

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Natural = Annotated[int, Field(ge=1, lt=2**31)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Whole  # numpy's end at 2 ** 32; room for what is added per fold and per try


def _count_from_zero(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if numbers != tuple(range(len(numbers))):
        raise ValueError(f"they are counted from 0 on; give {list(range(len(numbers)))}")
    return numbers


Numbers = Annotated[tuple[int, ...], AfterValidator(_count_from_zero)]


class Section(BaseModel):
    """A section of params.yaml: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=BaseModel)


def check_section(kind: type[AnySection], content: Mapping[str, Any], where: str) -> AnySection:
    """Return `content` as a section of the class `kind`, which stands beside the entry of a table that it is of.

    Raises:
        InputError: a key is unknown, missing or out of bounds; `where` names the section, as `unet`.
    """
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        keys = ", ".join(kind.model_fields)
        raise InputError(f"params.yaml: {explain_fault(error, where)}; its keys are {keys}") from error


def bind_options(function: Callable[..., Any], options: Mapping[str, Any], where: str) -> Callable[..., Any]:
    """Return `function` with its keyword-only parameters, the options of a table's entry, filled from `options`.

    Their annotations are their bounds.

    Raises:
        InputError: an option is unknown, missing or out of bounds; `where` names the entry, as `augment.effects.blur`.
    """
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    bounds = {one.name: one.annotation for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    if odd := sorted(bounds.keys() ^ options.keys()):
        fault = "no such key" if odd[0] in options else "missing"
        raise InputError(f"params.yaml: {where}.{odd[0]}: {fault}; its keys are {', '.join(bounds) or 'none'}")
    values = {}
    for name, bound in bounds.items():
        try:
            values[name] = TypeAdapter(bound).validate_python(options[name])
        except ValidationError as error:
            raise InputError(f"params.yaml: {explain_fault(error, f'{where}.{name}')}") from error
    return partial(function, **values)


def explain_fault(error: ValidationError, where: str) -> str:
    """Return the first fault in a line: key, which `where` comes before, what is wrong, value."""
    # A key that is unknown is the likely cause of the one that is missing.
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join([where, *map(str, first["loc"])]).strip(".")[:200] or "the file"
    is_whole = isinstance(first["input"], dict) or first["type"] in ("missing", "extra_forbidden")
    value = "" if is_whole else f", got {repr(first['input'])[:200]}"
    what = "no such key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")[:300]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    of_several = not first["loc"] and first["type"] == "value_error"  # which says itself what it is of
    return shorten(f"{what}{more}" if of_several else f"{key}: {what}{value}{more}", 1000)
