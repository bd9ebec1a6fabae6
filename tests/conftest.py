"""What many tests share: the parameters, the sample, archives made on the spot."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.images.prepare import prepare_split
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
