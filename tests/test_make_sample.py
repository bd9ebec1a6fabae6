"""The embedded sample is what `data/make_sample.py` draws."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARCHIVES = [ROOT / "data" / "dsb2018" / "stage1_train.zip", ROOT.parent / "shared" / "dsb2018" / "stage1_train.zip"]


@pytest.fixture(scope="module")
def make_sample():
    """Return the script as a module: it can be imported everywhere."""
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "data" / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_sample


def test_the_full_archive_gives_the_sample_again_byte_for_byte(make_sample, sample, tmp_path):
    archive = next((path for path in ARCHIVES if path.is_file()), None)
    if archive is None:
        pytest.skip("the full archive is not here; `python -m pipeline fetch fixes` gets it")
    make_sample(archive, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["stage1_solution.csv", "stage1_test.zip", "stage1_train.zip"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (sample / name).read_bytes(), name
