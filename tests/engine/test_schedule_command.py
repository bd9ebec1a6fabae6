"""`schedule`: what it prints of a run's seconds, and what it refuses."""

from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.compose import write_composed
from pipeline.files import write_json

STAGES = ("prepare", "folds", "evaluate", "submit", "report", "predict_testset.main-0")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a folder with parameters and a run's seconds: 10 for each stage."""
    monkeypatch.chdir(tmp_path)
    write_composed(Path("params.yaml"), ["folds.ids=[0,1]"])
    for name in (*STAGES, *(f"{stage}.main-{fold}" for stage in ("train", "size", "predict_oof") for fold in (0, 1))):
        write_json(tmp_path / ".resume" / "journal" / f"{name}.json", {"seconds": 10})
    return tmp_path


@pytest.mark.parametrize(
    ("cores", "words"), [(2, "120 s on 2 cores (folds at a time: 1,"), (4, "90 s on 4 cores (folds at a time: 2,")]
)
def test_the_whole_is_printed_last(checkout: Path, capsys: pytest.CaptureFixture[str], cores: int, words: str) -> None:
    main(["schedule", "--cores", str(cores)])
    *stages, last = capsys.readouterr().out.splitlines()
    assert len(stages) == 12
    assert last.startswith(words)
    assert "120 s one after another" in last


def test_stages_that_did_not_run_are_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("folds", "submit"):
        (checkout / ".resume" / "journal" / f"{name}.json").unlink()
    main(["schedule", "--cores", "2"])
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "up to date when the others ran, and counted as no time: folds, submit"
    assert last.startswith("100 s on 2 cores")


def test_fewer_cores_than_a_fold_has_threads_are_refused(checkout: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: --cores 1: a fold has runtime.threads = 2"):
        main(["schedule", "--cores", "1"])


def test_a_stage_without_seconds_is_named(checkout: Path) -> None:
    (checkout / ".resume" / "journal" / "size.main-1.json").unlink()
    with pytest.raises(SystemExit, match=r"^error: size@main-1 has noted no seconds here"):
        main(["schedule"])
