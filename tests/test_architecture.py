"""The house rules that keep one room's change out of another: imports run one way, and library rooms are quiet.

Each rule is a function of a module's text that names what breaks it, so that it can be seen to fail on a made-up one.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"

# From the ground up. A room may import those below its own, and itself; rooms that share a line, never one another.
GROUND = {
    "errors", "params", "members", "housekeeping", "options", "files", "yaml_files", "tables", "diameter",
    "parallel", "progress", "provenance", "compose", "launch",
}  # fmt: skip
FLOORS = [
    GROUND,
    {"images", "unet", "nuclei"},
    {"folds"},
    {"predict", "kaggle", "experiments"},
    {"stages", "studies", "engine"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LIBRARY = {room for floor in FLOORS[1:4] for room in floor}
# Where the whole of params.yaml is known: where it is read, and where it is taken apart.
KNOW_ALL_PARAMS = {"stages", "studies", "launch", "compose", "params"}
KNOW_ALL_PARAMS_TOO = {"experiments/run_card.py", "commands/prediction.py", "commands/blending.py"}
# What is allowed to one module alone, and why.
ALLOWED = {
    "studies/study.py": {"stages"},  # prepares and folds images by the very stages
    "images/cpu_augment.py": {"os.environ"},  # written: tells a library not to ask a server for its newest version
    "unet/runtime.py": {"os.environ"},  # written: cuBLAS and oneDNN are told there what to keep
    "kaggle/client.py": {"os.environ"},  # the PATH on which it looks for a program
}

MODULES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
}
FULL = [name for name in MODULES if not name.endswith("__init__.py")]


def room_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def imported_modules(text: str) -> set[str]:
    """Return the full names of what a module imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names}
    return names


def forbidden_imports(name: str, text: str) -> set[str]:
    """Return the rooms that the module `name` imports and may not; imports that are relative are none of them."""
    room = room_of(name)
    allowed = {room}
    for floor in FLOORS:
        if room in floor:
            break
        allowed |= floor
    if room in GROUND:
        allowed = GROUND
    imported = imported_modules(text)
    rooms = {module.split(".")[1] for module in imported if module.startswith("pipeline.")}
    return rooms - allowed | {module for module in imported if module.startswith(".")}


def outside_access(text: str) -> set[str]:
    """Return the ways in which a module reads its command line or environment, or keeps a state of its own."""
    tree = ast.parse(text)
    names = {"sys.argv", "os.environ", "os.environb", "os.getenv", "os.putenv", "argparse"}
    found = {module for module in imported_modules(text) if module in names or module.split(".")[0] == "argparse"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in names:
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Global):
            found |= {f"global {name}" for name in node.names}
    return found


def workspace_paths(text: str) -> set[str]:
    """Return the texts of a module, docstrings and messages aside, that name a place in the workspace."""
    tree = ast.parse(text)
    aside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Raise):
            aside |= {id(part) for part in ast.walk(node)}
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in aside
    }
    return {text for text in texts if text.startswith(("data/", "folds/", "submissions/")) or text == "params.yaml"}


def names_all_params(text: str) -> bool:
    """Whether a module names `Params`, imported or as an attribute."""
    nodes = list(ast.walk(ast.parse(text)))
    imported = any(module == "pipeline.params.Params" for module in imported_modules(text))
    return imported or any(isinstance(node, ast.Attribute) and node.attr == "Params" for node in nodes)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    assert forbidden_imports(name, MODULES[name]) <= ALLOWED.get(name, set())


def test_every_room_has_its_floor() -> None:
    known = {room for floor in FLOORS for room in floor} | {"__init__"}
    assert {room_of(name) for name in MODULES} == known


@pytest.mark.parametrize("name", [name for name in MODULES if name.endswith("__init__.py")])
def test_init_files_are_empty(name: str) -> None:
    assert MODULES[name] == ""


@pytest.mark.parametrize("name", [name for name in MODULES if room_of(name) in LIBRARY])
def test_library_rooms_are_quiet(name: str) -> None:
    assert outside_access(MODULES[name]) <= ALLOWED.get(name, set())
    assert workspace_paths(MODULES[name]) == set()


@pytest.mark.parametrize("name", [name for name in MODULES if room_of(name) not in KNOW_ALL_PARAMS])
def test_rooms_take_the_sections_that_they_use(name: str) -> None:
    assert name in KNOW_ALL_PARAMS_TOO or not names_all_params(MODULES[name])


@pytest.mark.parametrize("name", FULL)
def test_modules_are_short_and_say_what_they_are(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name]))
    assert MODULES[name].count("\n") <= 300


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("images/a.py", "from pipeline.unet.model import build_model", {"unet"}),
        ("images/a.py", "def f():\n    import pipeline.folds.table", {"folds"}),
        ("images/a.py", "from pipeline import nuclei, errors", {"nuclei"}),
        ("images/a.py", "from . import b", {".None.b"}),
        ("images/a.py", "from pipeline.images.b import c\nimport numpy", set()),
        ("kaggle/a.py", "from pipeline.experiments.runs import read_scores", {"experiments"}),
        ("kaggle/a.py", "from pipeline.folds.table import x\nfrom pipeline.images import y", set()),
        ("folds/a.py", "from pipeline.predict.segment import x", {"predict"}),
        ("stages/a.py", "from pipeline.studies.study import x", {"studies"}),
        ("studies/a.py", "from pipeline.stages.train import x", {"stages"}),
        ("engine/a.py", "from pipeline.stages.train import x", {"stages"}),
        ("commands/a.py", "from pipeline.engine.jobs import x\nfrom pipeline.cli import y", {"cli"}),
        ("files.py", "from pipeline.images import png", {"images"}),
        ("files.py", "from pipeline.errors import InputError", set()),
    ],
)
def test_an_import_that_runs_the_other_way_is_seen(name: str, text: str, found: set[str]) -> None:
    assert forbidden_imports(name, text) == found


@pytest.mark.parametrize(
    "text",
    [
        "import os\nx = os.environ['A']",
        "import os\nx = os.environ.get('A')",
        "import os\nos.getenv('A')",
        "from os import environ",
        "from os import getenv",
        "import sys\nx = sys.argv[1]",
        "from sys import argv",
        "import argparse",
        "from argparse import ArgumentParser",
        "def f():\n    global x\n    x = 1",
    ],
)
def test_a_look_at_the_world_outside_is_seen(text: str) -> None:
    assert outside_access(text)


def test_other_uses_of_the_same_modules_are_none() -> None:
    assert not outside_access("import os, sys\nx = os.cpu_count(), sys.stderr")


@pytest.mark.parametrize("text", ["p = 'folds/weights'", "open('params.yaml')", "f(x='data/sample')"])
def test_a_path_of_the_workspace_is_seen(text: str) -> None:
    assert workspace_paths(text)


def test_a_message_may_name_a_path() -> None:
    assert not workspace_paths('"""data/x"""\nraise ValueError("folds/folds.csv is missing")\nx = f"params.yaml: {y}"')


@pytest.mark.parametrize(
    "text", ["from pipeline.params import Params", "from pipeline import params\nx: params.Params"]
)
def test_the_whole_of_params_is_seen(text: str) -> None:
    assert names_all_params(text)
    assert not names_all_params(text.replace("Params", "SizeParams"))
