"""Prepared splits made on the spot."""

import pandas as pd
import pytest

from pipeline.images.source import describe_image
from pipeline.images.splits import PreparedSplit
from pipeline.images.store import PackWriter
from pipeline.images.table import TABLE_COLUMNS


@pytest.fixture
def make_split(tmp_path):
    """Return a function that writes a prepared split of {image_id: (image, label map or None)}, and opens it.

    Columns of its table may be given: a value for each image.
    """

    def make(images, folder=tmp_path / "prepared", **columns):
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        with PackWriter(folder / "images.npz") as pack:
            for image_id, (image, label_map) in images.items():
                prepared = describe_image(image_id, image, label_map, [])
                rows.append(prepared.row | {"source": "made", "scored": 1, "weight": 1.0})
                pack.add(f"{image_id}.image", prepared.stored_image)
                if prepared.stored_labels is not None:
                    pack.add(f"{image_id}.label_map", prepared.stored_labels)
        table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS)).assign(**columns)
        table.to_csv(folder / "table.csv", index=False)
        return PreparedSplit.open(folder)

    return make
