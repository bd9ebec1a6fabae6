"""Fold tables made on the spot."""

import pandas as pd
import pytest


@pytest.fixture
def make_folds(tmp_path):
    """Return a function that writes the fold table of {image_id: (group, fold)}, and returns its path."""

    def make(places):
        rows = [(image_id, group, "s", fold) for image_id, (group, fold) in places.items()]
        path = tmp_path / "folds.csv"
        pd.DataFrame(rows, columns=["image_id", "group", "stratum", "fold"]).to_csv(path, index=False)
        return path

    return make
