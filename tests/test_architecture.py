"""The house rules that keep one room's change out of another: imports run one way, and library rooms are quiet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"

# A room may import itself and the rooms named here; every room may import the ground floor.
GROUND = {"params", "errors", "files", "progress", "parallel"}
ALLOWED = {
    "images": set(),
    "nuclei": set(),
    "unet": set(),
    "experiments": {"images", "unet", "nuclei"},
    "stages": {"experiments", "images", "unet", "nuclei"},
    "studies": {"stages", "experiments", "images", "unet", "nuclei"},
    "cli": {"experiments", "images", "unet", "nuclei"},
    "__main__": {"cli"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
LIBRARY = [
    path for path in MODULES if path.relative_to(PACKAGE).parts[0] in {"images", "nuclei", "unet", "experiments"}
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_rooms(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("pipeline.")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = GROUND if room in GROUND else GROUND | {room} | ALLOWED.get(room, set())
    assert imported_rooms(path) <= allowed


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name_of)
def test_init_files_are_empty(path: Path) -> None:
    assert path.read_bytes() == b""


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_rooms_parse_no_arguments_and_read_no_environment(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "argparse" not in imports
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"sys.argv", "os.getenv"}
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree))


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_library_rooms_spell_no_path_of_the_workspace(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
    assert not [text for text in texts if text.startswith(("data/", "folds/", "submissions/")) or text == "params.yaml"]


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=name_of)
def test_modules_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= 300
