"""The size of nuclei, as one number for all shapes, and the zoom that brings it to the size that networks know."""

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.params import SizeParams


@overload
def equivalent_diameter(area_px: float) -> float: ...
@overload
def equivalent_diameter(area_px: NDArray[Any]) -> NDArray[np.float64]: ...
def equivalent_diameter(area_px: Any) -> Any:
    """Return the diameter, in px, of the disc that has this area, or these areas, in px."""
    return 2 * np.sqrt(area_px / np.pi)


def zooms_to_size(diameters_px: NDArray[np.float64], size: SizeParams) -> NDArray[np.float64]:
    """Return (n,) zooms, output px per px, that bring nuclei of these diameters to the one that networks know.

    A zoom is 1 where the diameter is 0, unknown, and 1 everywhere where `size.object_diameter_px` is 0.
    """
    zooms = np.ones(len(diameters_px))
    if size.object_diameter_px == 0:
        return zooms
    np.divide(size.object_diameter_px, diameters_px, out=zooms, where=diameters_px > 0)
    return zooms.clip(size.min_zoom, size.max_zoom)
