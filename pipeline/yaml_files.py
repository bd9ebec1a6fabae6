"""YAML files as people edit them: their content, or one error that says where they are none."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import InputError, shorten

_MOST_YAML = 50_000  # characters; params.yaml has 3,000


def read_yaml(path: Path) -> Any:
    """Return the content of the YAML file at `path`.

    Raises:
        InputError: the file is missing, is no YAML, or has what DVC never writes and in a few bytes means gigabytes.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _check_yaml(text)
        _refuse_twin_keys(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); restore it by `git checkout`") from error
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        reason = shorten(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise InputError(
            f"{path}: cannot be read as YAML ({reason}); mend it, or restore it by `git checkout`"
        ) from error


def read_lock(path: Path) -> Any:
    """Return the content of a file that DVC writes, which may be long.

    Raises:
        InputError: the file is missing, or no YAML.
    """
    try:
        # The loader in C, where there is one, takes a tenth of the time.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_bytes())
        return loader.get_single_data()
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({shorten(error)}); restore it by `git checkout`") from error


def _check_yaml(text: str) -> None:
    """Refuse aliases and nesting that grow without bound, and values that break the parsers of YAML's types."""
    depth = 0
    for event in yaml.parse(text[:_MOST_YAML], yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        marks = getattr(event, "anchor", None), getattr(event, "tag", None)
        if any(marks) or depth > 20 or len(getattr(event, "value", "")) > 1000 or len(text) > _MOST_YAML:
            raise yaml.YAMLError(
                f"an anchor, a tag, 20 levels, a word of 1,000 characters, or over {_MOST_YAML} in all"
            )


def _refuse_twin_keys(node: yaml.Node | None) -> None:
    """Refuse a key that comes twice in a mapping: YAML's readers take the last one and say nothing."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twins := sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(f"the key {twins[0]} twice, on line {node.start_mark.line + 1} or below")
        for _, value in node.value:
            _refuse_twin_keys(value)


def format_yaml(content: Any) -> str:
    """Return `content` as YAML, keys in their order."""
    return yaml.safe_dump(content, sort_keys=False)
