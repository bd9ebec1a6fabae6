"""Stored predictions to nuclei, spread over processes. In: a pack of probabilities. Out: label maps, one at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.nuclei.decoding import Decoding, decode_instances
from pipeline.parallel import map_in_order

Arrays = Mapping[str, NDArray[Any]]


def decode_predictions(
    predictions: Arrays, image_ids: Sequence[str], decodings: Sequence[Decoding], workers: int
) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield (image_id, label_map (H, W) int32) of stored predictions, each decoded with its own parameters."""
    jobs = [(predictions, image_id, decoding) for image_id, decoding in zip(image_ids, decodings, strict=True)]
    return zip(image_ids, map_in_order(_decode_job, jobs, workers), strict=True)


def _decode_job(job: tuple[Arrays, str, Decoding]) -> NDArray[np.int32]:
    predictions, image_id, decoding = job
    return decode_instances(predictions[f"{image_id}.probabilities"], decoding)
