"""What decides a result beside its inputs: code and machine.

In: the name of a module of this package. Out: its files, and a digest of them.

One rule for all who ask: the dependencies in dvc.yaml, the fingerprint under which training resumes, and the caches of
studies. A result depends on the files that its module imports, directly or not, at the top or inside a function.
"""

import ast
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]  # of the repository; dvc.yaml names files relative to it

# Packages whose versions decide results.
_PACKAGES = (
    "torch", "timm", "segmentation-models-pytorch", "albumentations", "opencv-python-headless", "numpy", "pandas",
    "scikit-learn", "scipy", "scikit-image",
)  # fmt: skip

# What decides no result, neither by itself nor by what it imports:
EXEMPT = {
    # carries values, which count by themselves: as params in dvc.yaml, as parts of a fingerprint elsewhere
    "pipeline/params.py",
    "pipeline/members.py",
    "pipeline/housekeeping.py",
    "pipeline/compose.py",
    # carries arguments, messages and bookkeeping
    "pipeline/launch.py",
    "pipeline/errors.py",
    "pipeline/provenance.py",
    # only watches: nothing is chosen by what it sees
    "pipeline/progress.py",
    "pipeline/folds/watch.py",
}


def code_dependencies(module: str, root: Path = ROOT) -> list[Path]:
    """Return the files, relative to `root` and sorted, that can change what `module` computes.

    Args:
        module: a module of the package `pipeline`, as `pipeline.stages.train`.
        root: the folder that the package lies in.

    Raises:
        ValueError: there is no such module.
    """
    start = _find_module(module, root)
    if start is None:
        raise ValueError(f"{module} is no module of the package in {root}")
    waiting, seen = [start], set[str]()
    while waiting:
        path = waiting.pop()
        name = path.relative_to(root).as_posix()
        if name in seen or name in EXEMPT:
            continue
        seen.add(name)
        names = _imported_names(path.read_text(encoding="utf-8"))
        waiting += filter(None, (_find_module(imported, root) for imported in names))
        if "jinja2" in names:  # a module that fills templates depends on those beside it
            seen |= {template.relative_to(root).as_posix() for template in path.parent.glob("*.j2")}
    return [Path(name) for name in sorted(seen)]


def digest_code(module: str, root: Path = ROOT) -> str:
    """Return a SHA-256, in hex, of the files that can change what `module` computes: of their names and contents."""
    digest = hashlib.sha256()
    for path in code_dependencies(module, root):
        digest.update(f"{path.as_posix()} {hashlib.sha256((root / path).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def fingerprint(parts: dict[str, Any]) -> str:
    """Return a digest (16 hex digits) of JSON-like `parts`, the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _find_module(name: str, root: Path) -> Path | None:
    """Return the file of a module of this package; None for a folder of modules, and for what is foreign."""
    path = root / (name.replace(".", "/") + ".py")
    return path if name.startswith("pipeline.") and path.is_file() else None


@cache
def _imported_names(source: str) -> frozenset[str]:
    """Return the modules that a file imports; what it imports from one may be a module, and is named too."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return frozenset(names())


def check_runtime(path: Path, own: dict[str, str]) -> None:
    """Refuse a machine on which networks run otherwise than on the first that worked on the same, which writes `path`.

    Args:
        path: a JSON file that all machines see; its folder is there.
        own: the device and the precision that parameters came to on this machine.

    Raises:
        InputError: what differs.
    """
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial") as file:
        json.dump(own, file)
        file.flush()
        Path(file.name).chmod(0o644)
        try:
            os.link(file.name, path)
        except FileExistsError:
            pass  # of two machines that begin at once, one is the first
        except OSError:  # a file system without links
            if not path.exists():
                write_json(path, own)
    if own != (wanted := read_json(path)):
        raise InputError(
            f"{path}: {platform.node()} runs networks on {', '.join(own.values())}, and the first machine did on "
            f"{', '.join(map(str, wanted.values()))}: its results would be others; give it nothing of this, set "
            "runtime.device and runtime.precision to what all have, or begin in a folder of its own"
        )


def describe_environment() -> dict[str, str]:
    """Return what decides results beside the code: the versions of Python, `3.11`, and of packages, `none` without."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {name: _find_version(name) for name in _PACKAGES}


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
