"""Which code decides a result: what is imported, directly or not, and nothing that only watches."""

from pathlib import Path

import pytest

from pipeline.provenance import EXEMPT, ROOT, code_dependencies, digest_code, fingerprint

FILES = {
    "stages/one.py": "from pipeline.launch import run\nfrom pipeline.folds.training import train\n",
    "folds/training.py": "from pipeline.folds import watch\nfrom pipeline.unet import model\n",
    "folds/watch.py": "import pipeline.nuclei.metric\n",
    "unet/model.py": "def build():\n    from pipeline.unet.blocks import block\n    import numpy\n",
    "unet/blocks.py": "from pipeline.unet import model  # in a circle\n",
    "nuclei/metric.py": "",
    "launch.py": "from pipeline.nuclei.metric import score\n",
    "report/page.py": "import jinja2\n",
    "report/page.html.j2": "{{ text }}",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "pipeline" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def listed(module: str, root: Path) -> list[str]:
    return [path.as_posix().removeprefix("pipeline/") for path in code_dependencies(module, root)]


def test_what_is_imported_counts_also_deep_down_and_inside_a_function(root: Path) -> None:
    assert listed("pipeline.stages.one", root) == [
        "folds/training.py", "stages/one.py", "unet/blocks.py", "unet/model.py",
    ]  # fmt: skip


def test_what_only_watches_hides_what_it_imports(root: Path) -> None:
    assert "nuclei/metric.py" not in listed("pipeline.stages.one", root)
    (root / "pipeline/folds/training.py").write_text("import pipeline.nuclei.metric\n")
    assert "nuclei/metric.py" in listed("pipeline.stages.one", root)


def test_templates_count_where_they_are_filled(root: Path) -> None:
    assert listed("pipeline.report.page", root) == ["report/page.html.j2", "report/page.py"]


def test_a_module_that_is_not_there_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"pipeline\.stages\.two is no module"):
        code_dependencies("pipeline.stages.two", root)


def test_the_digest_changes_with_the_code_that_counts_and_with_no_other(root: Path) -> None:
    before = digest_code("pipeline.stages.one", root)
    for name in ("folds/watch.py", "nuclei/metric.py", "report/page.py", "launch.py"):
        (root / "pipeline" / name).write_text("x = 1\n")
    assert digest_code("pipeline.stages.one", root) == before
    (root / "pipeline/unet/blocks.py").write_text("x = 1\n")
    assert digest_code("pipeline.stages.one", root) != before


def test_what_is_exempt_is_there() -> None:
    """A file that was renamed would count again, and nobody would see why."""
    assert [name for name in sorted(EXEMPT) if not (ROOT / name).is_file()] == []


def test_half_a_training_survives_an_edit_of_what_it_does_not_use() -> None:
    names = {path.as_posix() for path in code_dependencies("pipeline.folds.training")}
    assert "pipeline/files.py" in names
    assert not {
        name for name in names if name.startswith(("pipeline/kaggle", "pipeline/experiments", "pipeline/predict"))
    }


def test_fingerprints_are_equal_where_the_parts_are() -> None:
    assert fingerprint({"a": 1, "b": [Path("c")]}) == fingerprint({"b": [Path("c")], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    assert len(fingerprint({})) == 16
