"""Stored predictions to nuclei, spread over processes. In: a pack of probabilities. Out: label maps, one at a time."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.nuclei.decoding import Decoding, decode_instances
from pipeline.parallel import map_in_order

Arrays = Mapping[str, NDArray[Any]]


def read_decodings(path: Path) -> dict[str, Decoding]:
    """Return the chosen decoding parameters in a `decoding.json`: under `all`, and under each fold's id.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = read_json(path)
    try:
        return {name: Decoding(**values) for name, values in {"all": content["all"], **content["folds"]}.items()}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no decoding parameters ({error}); run the stage `evaluate` again") from error


def decode_predictions(
    predictions: Arrays, image_ids: Sequence[str], decodings: Sequence[Decoding], workers: int
) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield (image_id, label_map (H, W) int32) of stored predictions, each decoded with its own parameters."""
    # The array travels, not the pack: opening one again for each image would read its whole directory.
    jobs = ((predictions[f"{name}.probabilities"], choice) for name, choice in zip(image_ids, decodings, strict=True))
    return zip(image_ids, map_in_order(_decode_job, jobs, workers), strict=True)


def _decode_job(job: tuple[NDArray[np.uint8], Decoding]) -> NDArray[np.int32]:
    return decode_instances(*job)
