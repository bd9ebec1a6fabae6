"""What comes from elsewhere is data: no code of the package unpickles, evaluates, or hands a name to a shell."""

import ast
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.params import DataParams

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "pipeline").rglob("*.py"))

# Modules whose formats run code when they are read, and what does no harm in them.
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "diskcache", "code"}
HARMLESS = {"pickle.UnpicklingError", "pickle.PicklingError", "pickle.PickleError"}
# Calls that run text as code, or hand it to a shell, whatever their arguments.
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "builtins.eval",
    "builtins.exec",
    "importlib.import_module",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
    "pty.spawn",
    "torch.jit.load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.utils.model_zoo.load_url",
    "torch.package.PackageImporter",
    "pandas.read_pickle",
}
# All of yaml's readers but `safe_load` and `BaseLoader`: a tag makes them build Python objects.
YAML_READERS = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}
YAML_LOADERS = {"Loader", "UnsafeLoader", "FullLoader", "CLoader", "CUnsafeLoader", "CFullLoader"}
# What is allowed to one module alone, and why.
ALLOWED = {
    "stages/__main__.py": {"importlib.import_module"},  # of a name that is one of the files beside it
}
SHELLS = {"run", "Popen", "call", "check_call", "check_output"}


def find_dangers(source: str) -> list[str]:
    """Return what in a module's source may execute what it reads, as `line: name`."""
    tree = ast.parse(source)
    names = _imported_names(tree)
    return [f"{line}: {what}" for node in ast.walk(tree) for line, what in _judge(node, names)]


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """Return what each imported name stands for: `np` for numpy, `load` for torch.load."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom):
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    return names


def _judge(node: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for module in modules:
            if module.split(".")[0] in PICKLERS - {"pickle"}:
                yield node.lineno, module
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in FORBIDDEN or (node.module == "pickle" and full not in HARMLESS):
                    yield node.lineno, full
    elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
        full = _full_name(node, names)
        module, _, attribute = full.rpartition(".")
        if (
            full in FORBIDDEN
            or attribute in ("read_pickle", "to_pickle")
            or (module == "pickle" and full not in HARMLESS)
            or (module == "yaml" and attribute in YAML_READERS | YAML_LOADERS)
        ):
            yield node.lineno, full
    elif isinstance(node, ast.Call):
        yield from ((node.lineno, what) for what in _judge_call(node, _full_name(node.func, names)))


def _judge_call(call: ast.Call, name: str) -> Iterator[str]:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}

    def is_constant(key: str, value: bool) -> bool:
        return isinstance(keywords[key], ast.Constant) and keywords[key].value is value

    if name == "torch.load" and not ("weights_only" in keywords and is_constant("weights_only", True)):
        yield "torch.load without weights_only=True"
    if "allow_pickle" in keywords and not is_constant("allow_pickle", False):
        yield f"{name} with allow_pickle"
    if name == "numpy.load" and (len(call.args) > 2 or None in keywords):
        yield "numpy.load with arguments that cannot be told"
    if "shell" in keywords and not is_constant("shell", False):
        yield f"{name} with shell"
    # A list is never split by a shell; a string may be one that is put together from names.
    if name in {f"subprocess.{function}" for function in SHELLS} and not (
        call.args and isinstance(call.args[0], ast.List) and None not in keywords
    ):
        yield f"{name} of what is no list of arguments"


def _full_name(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT / "pipeline").as_posix())
def test_nothing_that_is_read_is_executed(path):
    allowed = ALLOWED.get(path.relative_to(ROOT / "pipeline").as_posix(), set())
    assert {danger.partition(": ")[2] for danger in find_dangers(path.read_text(encoding="utf-8"))} <= allowed


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "import pickle as p\np.Unpickler(f)",
        "from pickle import loads",
        "from joblib import load",
        "import torch\ntorch.load(p)",
        "import torch as t\nt.load(p, weights_only=False)",
        "from torch import load\nload(p, weights_only=safe)",
        "from torch import load as read\nread(p)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import numpy as np\nnp.load(p, None, True)",
        "import numpy as np\nnp.load(p, **options)",
        "import numpy as np\nnp.savez(p, allow_pickle=maybe)",
        "import pandas as pd\npd.read_pickle(p)",
        "table.to_pickle(p)",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(f)",
        "import yaml\nclass Reader(yaml.UnsafeLoader):\n    pass",
        "from yaml import full_load\nfull_load(f)",
        "eval(text)",
        "exec(text)",
        "run = eval",
        "import os\nos.system('rm ' + name)",
        "from os import popen\npopen(name)",
        "import subprocess\nsubprocess.run('ls ' + name, shell=True)",
        "import subprocess\nsubprocess.run(['ls'], shell=maybe)",
        "import subprocess\nsubprocess.run(['ls'], **options)",
        "from subprocess import run\nrun(f'ls {name}')",
        "import subprocess\nsubprocess.getoutput(name)",
        "import importlib\nimportlib.import_module(name)",
    ],
)
def test_each_danger_is_found(source):
    assert find_dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass",
        "import torch\ntorch.load(p, map_location='cpu', weights_only=True)\ntorch.compile(net)\nmodel.eval()",
        "import numpy as np\nnp.load(p)\nnp.load(p, allow_pickle=False)",
        "import re\nre.compile('x')",
        "import yaml\ntry:\n    yaml.safe_load(f)\n    yaml.parse(f)\nexcept yaml.YAMLError:\n    pass",
        "import subprocess\nsubprocess.run(['git', *arguments], check=False)",
    ],
)
def test_what_does_no_harm_passes(source):
    assert find_dangers(source) == []


# DVC puts params.yaml's values into dvc.yaml's commands, which a shell reads. -----------------------------------


def shell_words(text: str) -> list[str]:
    """Return what a program would be given by the shell that DVC runs."""
    command = f"for word in {text}; do printf '%s\\0' \"$word\"; done"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=False, timeout=10)
    return done.stdout.decode().split("\0")[:-1]


def accepts(data: DataParams, folder: str) -> bool:
    try:
        DataParams.model_validate({**data.model_dump(), "dir": folder})
    except ValidationError:
        return False
    return True


def test_every_folder_in_a_command_is_quoted():
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        assert "${data.dir}" not in stage["cmd"].replace("'${data.dir}'", "")


@pytest.mark.parametrize("folder", ["data/sample", "my data", "a; rm b", "$HOME/`ls`", '"a"', "~/*", "Ünter/細胞"])
def test_the_shell_gives_a_quoted_folder_as_it_is(data_params, folder):
    assert accepts(data_params, folder)
    assert shell_words(f"'{folder}'") == [folder]


@pytest.mark.parametrize("folder", ["", "a'b", "'; rm a; '", "a\nb", "a\n", "a\0b", "a\x7f", "-rf"])
def test_a_folder_that_would_end_the_quotes_is_refused(data_params, folder):
    assert not accepts(data_params, folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folder=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_folder_that_is_accepted_is_one_word(data_params, folder):
    if accepts(data_params, folder):
        assert shlex.split(f"'{folder}'") == [folder]
