"""What many tests share: the parameters, the sample, archives made on the spot."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.images.prepare import prepare_split
from pipeline.images.source import describe_image
from pipeline.images.store import PackWriter
from pipeline.images.table import TABLE_COLUMNS
from pipeline.params import AugmentParams, load_params

ROOT = Path(__file__).resolve().parents[1]


def encode_png(array, **options):
    """Encode an array (H, W[, C]) as Pillow does, as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.fixture(scope="session")
def params():
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def data_params(params):
    """Return the parameters of `data` with what tests rely on held fast."""
    return params.data.model_copy(update={"allow_unlabelled": False, "min_fragment_px": 4})


@pytest.fixture(scope="session")
def housekeeping(params):
    """Return the parameters of `housekeeping` with one worker, so that no process is started."""
    return params.housekeeping.model_copy(update={"workers": 1, "max_pixels": 10_000_000})


@pytest.fixture(scope="session")
def no_augment():
    """Return the parameters of `augment` without any effect."""
    return AugmentParams(backend="device", effects={})


@pytest.fixture
def make_archive(tmp_path):
    """Return a function that writes {entry: bytes or array} to a zip and returns its path; arrays become PNGs."""

    def make(entries, name="train.zip", compression=zipfile.ZIP_DEFLATED):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", compression) as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content if isinstance(content, bytes) else encode_png(content))
        return path

    return make


@pytest.fixture(scope="session")
def sample():
    """Return the folder of the embedded sample."""
    return ROOT / "data" / "sample"


@pytest.fixture(scope="session")
def prepared_sample(sample, data_params, housekeeping, tmp_path_factory):
    """Return the folder of the sample's training split, prepared in this process."""
    folder = tmp_path_factory.mktemp("prepared_sample")
    prepare_split(data_params.sources, sample, folder, True, data_params, housekeeping)
    return folder


def draw_discs(seed, height=96, width=104):
    """Return an image (H, W, 3) uint8 of discs that do not touch, and their label map (H, W) uint16."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    label_map = np.zeros((height, width), np.uint16)
    for row in range(16, height - 15, 32):
        for column in range(16, width - 15, 32):
            radius = rng.uniform(6, 11)
            label_map[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = label_map.max() + 1
    grey = np.where(label_map > 0, rng.integers(120, 200), 20) + rng.integers(0, 20, label_map.shape)
    return grey.astype(np.uint8)[..., None].repeat(3, axis=2), label_map


@pytest.fixture
def make_split(tmp_path):
    """Return a function that writes a prepared split of discs, and returns its folder.

    Images whose ids are in `absent` have their row in the table, but are not in the pack; those in `unscored` are of a
    source that is not scored.
    """

    def make(image_ids, absent=(), unscored=(), folder=tmp_path / "prepared"):
        folder.mkdir(parents=True)
        rows = []
        with PackWriter(folder / "images.npz") as pack:
            for seed, image_id in enumerate(image_ids):
                image, label_map = draw_discs(seed)
                rows.append(
                    describe_image(image_id, image, label_map, []).row
                    | {"source": "made", "scored": int(image_id not in unscored), "weight": 1.0}
                )
                if image_id not in absent:
                    pack.add(f"{image_id}.image", image)
                    pack.add(f"{image_id}.label_map", label_map)
        pd.DataFrame(rows)[list(TABLE_COLUMNS)].to_csv(folder / "table.csv", index=False)
        return folder

    return make
