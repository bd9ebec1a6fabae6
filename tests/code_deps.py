"""Which code files can change a stage's result, derived from its imports; `python tests/code_deps.py` updates dvc.yaml.

`tests/test_dvc.py` checks that dvc.yaml lists exactly these.
"""

import ast
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]

# Values of parameters are tracked as params; the others only watch, or carry arguments and messages.
EXEMPT = {
    "pipeline/params.py",
    "pipeline/errors.py",
    "pipeline/progress.py",
    "pipeline/stages/run.py",
    "pipeline/experiments/watch.py",
}


def module_path(name: str) -> Path | None:
    """Return the file of a module of this project, or None for a package or a foreign module."""
    path = ROOT / (name.replace(".", "/") + ".py")
    return path if name.startswith("pipeline.") and path.is_file() else None


@cache
def imports_of(path: Path) -> frozenset[Path]:
    """Return the project's files that `path` imports itself, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found for name in names if (found := module_path(name)))


def code_dependencies(stage: str) -> list[str]:
    """Return the files, relative to the repository, that `pipeline.stages.<stage>` imports directly or not."""
    waiting, seen = [ROOT / "pipeline" / "stages" / f"{stage}.py"], set()
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in seen or name in EXEMPT:
            continue
        seen.add(name)
        waiting += imports_of(path)
        # A module that fills templates depends on those beside it.
        if "jinja2" in path.read_text(encoding="utf-8"):
            seen |= {template.relative_to(ROOT).as_posix() for template in path.parent.glob("*.j2")}
    return sorted(seen)


def main() -> None:
    """Write the derived code dependencies into dvc.yaml, behind the data dependencies of each stage."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = ROOT / "dvc.yaml"
    content = yaml.load(path)
    for name, stage in content["stages"].items():
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith("pipeline/")] + code_dependencies(name)
    yaml.dump(content, path)


if __name__ == "__main__":
    main()
