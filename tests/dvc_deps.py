"""Write into dvc.yaml what each stage depends on by its code: `make dvc-deps`. `tests/test_dvc.py` checks the same.

The `deps` of data stay; behind them come the code files that can change the result, and `params` become those that the
code reads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from pipeline.provenance import ROOT, code_dependencies
from tests.param_deps import read_params

_MOST_IN_A_LINE = 100  # characters; longer lists of params get a line for each


def main(root: Path = ROOT) -> None:
    """Derive both lists of every stage of `root`'s dvc.yaml, and write them."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = root / "dvc.yaml"
    content = yaml.load(path)
    for name, stage in content["stages"].items():
        code = [dep.as_posix() for dep in code_dependencies(f"pipeline.stages.{name}", root)]
        data = [dep for dep in stage["deps"] if not dep.startswith("pipeline/")]
        stage["deps"] = data + code
        params = CommentedSeq(read_params(name, root) + member_params(stage))
        if len(", ".join(params)) < _MOST_IN_A_LINE:
            params.fa.set_flow_style()
        stage["params"] = params
    yaml.dump(content, path)


def member_params(stage: Mapping[str, Any]) -> list[str]:
    """Return the params by which a stage's member differs from the others; `pipeline.launch` hands them to it."""
    return ["members.${item.member}"] if "member" in stage.get("matrix", {}) else []


if __name__ == "__main__":
    main()
