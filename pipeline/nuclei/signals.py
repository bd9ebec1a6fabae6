"""What tells, without the truth, how well an image's nuclei were found.

In: the candidates that the second level chose in an image, and the worth that it gave them. Out: a few numbers, the
same whatever the image's size and the number of its nuclei.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.nuclei.candidates import FEATURES

# By name, of one image.
Signals = Mapping[str, float]

# What the nuclei that were chosen are said to be worth, and how much that differs; and what a candidate's features
# are on average over them.
NAMES = ("worth", "worth_spread", *FEATURES)


def measure_signals(features: NDArray[np.float32], worth: NDArray[np.floating], indices: Sequence[int]) -> Signals:
    """Return the signals, by NAMES; all 0 where no nucleus was chosen.

    Args:
        features: (n, len(FEATURES)), of all candidates.
        worth: (n,), of all candidates.
        indices: of those that were chosen.
    """
    chosen = list(indices)
    if not chosen:
        return dict.fromkeys(NAMES, 0.0)
    own = worth[chosen].clip(0, 1)
    means = features[chosen].mean(axis=0, dtype=np.float64)
    return dict(zip(NAMES, [float(own.mean()), float(own.std()), *means.tolist()], strict=True))


def tabulate_signals(signals: Iterable[tuple[str, Signals | None]]) -> pd.DataFrame:
    """Return image_id and NAMES of the images that have signals."""
    rows = [{"image_id": image_id, **own} for image_id, own in signals if own is not None]
    return pd.DataFrame(rows, columns=["image_id", *NAMES])
