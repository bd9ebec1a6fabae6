"""The embedded sample is what `data/make_sample.py` writes of the full archive."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.images.archive import index_archive, open_archive

ROOT = Path(__file__).resolve().parents[1]
# Where `python -m pipeline fetch` lays it, or where a folder of that name lies beside the checkout.
ARCHIVES = [ROOT / "data" / "dsb2018" / "stage1_train.zip", *ROOT.parent.glob("*/dsb2018/stage1_train.zip")]


@pytest.fixture(scope="module")
def script():
    """Return the script as a module: it can be imported everywhere."""
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "data" / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_ids(path):
    with open_archive(path) as archive:
        return [entry.image_id for entry in index_archive(archive, labelled=False, allow_unlabelled=True)]


def test_the_full_archive_gives_the_sample_again_byte_for_byte(script, sample, tmp_path):
    archive = next((path for path in ARCHIVES if path.is_file()), None)
    if archive is None:
        pytest.skip("the full archive is not here; `python -m pipeline fetch fixes` gets it")
    parts = {part: read_ids(sample / f"stage1_{part}.zip") for part in ("train", "test")}
    script.write_sample(archive, parts, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["stage1_solution.csv", "stage1_test.zip", "stage1_train.zip"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (sample / name).read_bytes(), name


def test_some_images_are_described_and_written(script, sample, tmp_path):
    source = sample / "stage1_train.zip"
    ids = read_ids(source)
    with open_archive(source) as archive:
        entries = index_archive(archive, labelled=True, allow_unlabelled=False)
        table = script.describe_images(archive, entries[:4])
    assert table.index.tolist() == ids[:4]
    assert (table["bytes"] > 0).all()
    assert table["group"].notna().all()
    script.write_sample(source, {"train": ids[:3], "test": ids[3:4]}, tmp_path)
    assert read_ids(tmp_path / "stage1_train.zip") == ids[:3]
    assert read_ids(tmp_path / "stage1_test.zip") == ids[3:4]
    solution = pd.read_csv(tmp_path / "stage1_solution.csv")
    assert solution["ImageId"].value_counts().to_dict() == {ids[3]: len(entries[3].mask_entries)}


def make_table():
    """Return images of two types, the first eight and the next four of which are tiles of fields of four."""
    count = 600
    rng = np.random.default_rng(0)
    fields = [f"field{n // 4}" for n in range(12)] + [f"single{n}" for n in range(count - 12)]
    return pd.DataFrame(
        {
            "image_type": ["fluorescence", "brightfield"] * (count // 2),
            "bytes": [10] * 12 + rng.integers(20, 1000, count - 12).tolist(),
            "nuclei": [300 if n in (50, 60) else 10 for n in range(count)],
            "median_area_px": rng.integers(50, 900, count).astype(float),
            "height": 256,
            "width": 256,
            "group": fields,
        },
        index=pd.Index([f"i{n:03d}" for n in range(count)], name="image_id"),
    )


def test_the_draw_keeps_to_its_rule(script):
    table = make_table()
    parts = script.draw_sample(table, np.random.default_rng(1))
    assert parts == script.draw_sample(table, np.random.default_rng(1))
    assert parts != script.draw_sample(table, np.random.default_rng(2))
    train, test = (table.loc[parts[part]] for part in ("train", "test"))
    assert not set(train["group"]) & set(test["group"])
    assert {f"field{n}" for n in range(3)} <= set(train["group"])
    assert train["group"].str.startswith("field").sum() == 12
    assert table[table["nuclei"] > 255]["bytes"].idxmin() in train.index
    assert len(test) == 16
    assert test["image_type"].value_counts().to_dict() == {"fluorescence": 8, "brightfield": 8}
