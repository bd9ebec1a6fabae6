"""What the deriver of params finds: in small packages, where one sees by eye what is read, and in what really runs."""

import sys
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.options import Section
from pipeline.params import Params
from pipeline.provenance import EXEMPT, ROOT
from tests.faults.workspace import make_archives
from tests.param_deps import read_params
from tests.stages import test_pipeline
from tests.tiny import tiny_params

PARAMS = """
from dataclasses import dataclass
from pydantic import BaseModel, ConfigDict

class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")

class TrainParams(Section):
    lr: float
    epochs: int

    def at_start(self) -> "TrainParams":
        return self.model_copy(update={"epochs": self.epochs // 2})

class SizeParams(Section):
    window_px: int
    min_zoom: float
    max_zoom: float

class NetworkParams(Section):
    model_config = ConfigDict(extra='allow')
    name: str

class HousekeepingParams(Section):
    workers: int

@dataclass(frozen=True)
class Recipe:
    train: TrainParams
    size: SizeParams

    def describe(self) -> dict[str, object]:
        return {"train": self.train.model_dump(), "size": self.size.min_zoom}

class Params(Section):
    train: TrainParams
    size: SizeParams
    unet: NetworkParams
    housekeeping: HousekeepingParams

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.train, self.size)
"""
HEAD = """
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar
from pipeline.housekeeping import HousekeepingParams
from pipeline.params import NetworkParams, Params, Recipe, SizeParams, TrainParams
T = TypeVar("T")
"""


@pytest.fixture
def derive(tmp_path: Path):
    """Return a function that says what `main` of a stage reads; further modules are given by name."""

    def write(name: str, text: str) -> None:
        path = tmp_path / "pipeline" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def derive_from(stage: str, **modules: str) -> list[str]:
        write("params", PARAMS)
        write("stages/one", HEAD + stage)
        for name, text in modules.items():
            write(name.replace("__", "/"), HEAD + text)
        return read_params("one", tmp_path)

    return derive_from


def main_of(*lines: str) -> str:
    return "def main(params: Params) -> None:\n" + "".join(f"    {line}\n" for line in lines)


def test_a_read_deep_down_the_call_path_is_found(derive):
    stage = "from pipeline.folds.training import fit\n" + main_of("fit(params.train)")
    training = "from pipeline.unet.model import step\ndef fit(train: TrainParams) -> None:\n    step(train)\n"
    model = "def step(how: TrainParams) -> float:\n    return how.lr\n"
    assert derive(stage, folds__training=training, unet__model=model) == ["train.lr"]


def test_a_read_in_a_function_that_the_stage_does_not_reach_is_none(derive):
    stage = "from pipeline.rooms import used\n" + main_of("used(params.train)")
    rooms = "def used(train: TrainParams) -> float:\n    return train.lr\n"
    rooms += "def unused(train: TrainParams) -> int:\n    return train.epochs\n"
    assert derive(stage, rooms=rooms) == ["train.lr"]


def test_what_is_handed_on_and_never_looked_at_is_not_read(derive):
    rooms = "def used(train: TrainParams) -> None:\n    pass\n"
    assert derive("from pipeline.rooms import used\n" + main_of("used(params.train)"), rooms=rooms) == []


@pytest.mark.parametrize(
    "lines",
    [
        ("train = params.train", "print(train.lr)"),
        ("train, size = params.train, params.size", "print(train.lr)"),
        ("sections = [params.train]", "print(sections[0].lr)"),
        ("sections = {'a': params.train}", "print([one.lr for one in sections.values()])"),
        ("sections = []", "sections.append(params.train)", "print(sections[0].lr)"),
        ("for train, _ in zip([params.train], 'a'):", "    print(train.lr)"),
        ("print((train := params.train).lr)",),
        ("print(params.train.model_copy(update={'epochs': 3}).lr)",),
        ("print(params.recipe.train.lr)",),
        ("best = max([params.recipe], key=lambda recipe: recipe.train.lr)",),
        ("look = lambda: params.train.lr", "print(look())"),
        ("def look(train: TrainParams) -> float:", "    return train.lr", "print(look(params.train))"),
        ("print(f'{params.train.lr:.2f}')",),
    ],
)
def test_a_section_is_followed_through_names_and_what_holds_it(derive, lines):
    found = derive(main_of(*lines))
    assert found == (["train", "size"] if "max(" in lines[0] else ["train.lr"])


CLASSES = """
@dataclass
class Feed:
    train: TrainParams
    size: SizeParams

    def rate(self) -> float:
        return self.train.lr

    def zoom(self) -> float:
        return self.size.min_zoom

class Loader:
    def __init__(self, train: TrainParams, size: SizeParams) -> None:
        self._how, self._size = train, size

    @property
    def how(self) -> TrainParams:
        return self._how

    def __len__(self) -> int:
        return self._how.epochs

    def window(self) -> int:
        return self._size.window_px

class Pair(NamedTuple):
    train: TrainParams
    size: SizeParams

def open_loader(params: Params) -> Loader:
    return Loader(params.train, params.size)

def passed(item: T) -> T:
    return item

def spread(train: TrainParams, size: SizeParams) -> float:
    return train.lr * size.max_zoom
"""


@pytest.mark.parametrize(
    ("lines", "read"),
    [
        (["Feed(params.train, params.size).rate()"], ["train.lr"]),
        (["print(Feed(params.train, params.size).size.max_zoom)"], ["size.max_zoom"]),
        (["print(asdict(Feed(params.train, params.size)))"], ["train", "size"]),
        (["loader = Loader(params.train, params.size)"], ["train.epochs"]),
        (["print(open_loader(params).how.lr)"], ["train"]),
        (["print(open_loader(params).window())"], ["train.epochs", "size.window_px"]),
        (["train, size = Pair(params.train, params.size)", "print(size.min_zoom)"], ["size.min_zoom"]),
        (["spread(*Pair(params.train, params.size))"], ["train.lr", "size.max_zoom"]),
        (["print(passed(params.train).lr)"], ["train.lr"]),
        (["print(params.recipe.describe())"], ["train", "size.min_zoom"]),
        (["print(params.train.at_start().lr)"], ["train"]),
        (["Feed(size=params.size, train=params.train).zoom()"], ["size.min_zoom"]),
        (["work = partial(spread, params.train)", "work(params.size)"], ["train.lr", "size.max_zoom"]),
    ],
)
def test_a_section_is_followed_through_classes_and_returns(derive, lines, read):
    names = "Feed, Loader, Pair, open_loader, passed, spread"
    assert derive(f"from pipeline.rooms import {names}\n" + main_of(*lines), rooms=CLASSES) == read


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("print(params.size.model_dump())", ["size"]),
        ("print(json.dumps(params.size))", ["size"]),
        ("print(f'{params.size}')", ["size"]),
        ("print(params.size == params.size)", ["size"]),
        ("print(getattr(params.size, 'min_zoom'))", ["size"]),
        ("take(params.size)", ["size"]),
        ("print(params.recipe)", ["train", "size"]),
        ("print(params.model_dump())", ["train", "size", "unet"]),
        ("print(params)", ["train", "size", "unet"]),
        ("print(params.size is None)", []),
        ("print(params.unet.name)", ["unet"]),
        ("print(params.unet.model_extra)", ["unet"]),
        ("print(params.housekeeping.workers)", []),
        ("print(params.size.max_zoom, params.size.window_px, params.size.min_zoom)", ["size"]),
    ],
)
def test_a_section_that_goes_where_it_cannot_be_followed_is_read_whole(derive, line, read):
    assert derive("def take(what: Any) -> None:\n    pass\n" + main_of(line)) == read


def test_an_entry_of_a_table_by_name_is_reached(derive):
    rooms = "def weigh(size: SizeParams) -> float:\n    return size.min_zoom\n"
    rooms += "TABLE: dict[str, Callable[[SizeParams], float]] = {'weigh': weigh}\n"
    stage = "from pipeline import rooms\n" + main_of("print(rooms.TABLE['weigh'](params.size))")
    assert derive(stage, rooms=rooms) == ["size.min_zoom"]


def test_a_method_that_only_another_calls_is_reached(derive):
    """As torch calls `forward`, and a loader `__getitem__`."""
    rooms = "from torch import nn\n"
    rooms += "class Net(nn.Module):\n    def __init__(self, size: SizeParams) -> None:\n        self.size = size\n"
    rooms += "    def forward(self, x: int) -> float:\n        return self.size.min_zoom * x\n"
    stage = "from pipeline.rooms import Net\n" + main_of("net = Net(params.size)", "net(1)")
    assert derive(stage, rooms=rooms) == ["size.min_zoom"]


def test_a_method_of_the_class_that_stands_in_for_another_is_reached(derive):
    rooms = "class Base:\n    def look(self) -> float:\n        raise NotImplementedError\n"
    rooms += "class Real(Base):\n    def __init__(self, size: SizeParams) -> None:\n        self._size = size\n"
    rooms += "    def look(self) -> float:\n        return self._size.min_zoom\n"
    rooms += "def run(base: Base) -> float:\n    return base.look()\n"
    stage = "from pipeline.rooms import Real, run\n" + main_of("run(Real(params.size))")
    assert derive(stage, rooms=rooms) == ["size.min_zoom"]


def test_what_only_watches_reads_nothing(derive):
    watch = "class Watch:\n    def __init__(self, size: SizeParams, train: Any) -> None:\n"
    watch += "        self.zoom = size.min_zoom\n"
    stage = "from pipeline.folds.watch import Watch\n" + main_of("Watch(params.size, params.train)")
    assert derive(stage, folds__watch=watch) == []


# What carries values and arguments, or the bar around the work, lies on the way to what is read.
WATCHED = {str(ROOT / name) for name in EXEMPT} - {
    str(ROOT / "pipeline" / name) for name in ("params.py", "launch.py", "progress.py")
}
STAGES = [path.stem for path in sorted((ROOT / "pipeline/stages").glob("*.py")) if not path.stem.startswith("__")]


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Run all stages on a few images, and return the keys of params that each one asked for while it ran."""
    section_of = {field.annotation: name for name, field in Params.model_fields.items()}
    seen: dict[str, set[str]] = defaultdict(set)
    running: list[str] = []
    plain = Section.__getattribute__

    def is_only_watching() -> bool:
        frame = sys._getframe(2)
        while frame.f_back and frame.f_code.co_filename not in WATCHED:
            frame = frame.f_back
        return frame.f_code.co_filename in WATCHED

    def record(self: Section, name: str) -> object:
        kind = type(self)
        if running and kind in section_of and (name in kind.model_fields or name == "model_dump"):
            keys = kind.model_fields if name == "model_dump" else [name]
            if not is_only_watching():
                seen[running[-1]] |= {f"{section_of[kind]}.{key}" for key in keys}
        return plain(self, name)

    def follow(stage: str) -> None:
        module = getattr(test_pipeline, stage)
        main = module.main

        def run(*arguments: object, **named: object) -> object:
            running.append(stage)
            try:
                return main(*arguments, **named)
            finally:
                running.pop()

        patch.setattr(module, "main", run)

    archives = tmp_path_factory.mktemp("archives")
    make_archives(archives)
    with pytest.MonkeyPatch.context() as patch:
        for stage in STAGES:
            follow(stage)
        patch.setattr(Section, "__getattribute__", record)
        test_pipeline.run_chain(archives, tmp_path_factory.mktemp("run"), tiny_params())
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_asks_for_while_it_runs_was_derived(reads: dict[str, set[str]], stage: str) -> None:
    derived = set(read_params(stage))
    read = {key for key in reads[stage] if not key.startswith("housekeeping.")}
    assert read, "nothing was recorded"
    assert {key for key in read if not {key, key.split(".")[0]} & derived} == set()
