"""What many tests share: the parameters, the sample, archives made on the spot."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.images.prepare import prepare_archive
from pipeline.params import load_params

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
    """Return the parameters of `data` with what tests rely on held fast; one worker, so no process is started."""
    fixed = {"allow_unlabelled": False, "max_pixels": 10_000_000, "min_fragment_px": 4, "workers": 1}
    return params.data.model_copy(update=fixed)


@pytest.fixture(scope="session")
def no_augment(params):
    """Return the parameters of `augment` with every strength 0."""
    fields = type(params.augment).model_fields
    zeros = dict.fromkeys(fields, 0.0) | {"backend": "device", "flips": False}
    elastic = params.augment.elastic.model_copy(update={"probability": 0.0, "std_px": 0.0, "spacing_px": 32})
    return params.augment.model_copy(update=zeros | {"elastic": elastic})


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
def prepared_sample(sample, data_params, tmp_path_factory):
    """Return the folder of the sample's training split, prepared in this process."""
    folder = tmp_path_factory.mktemp("prepared_sample")
    prepare_archive(sample / "stage1_train.zip", folder, True, data_params)
    return folder
