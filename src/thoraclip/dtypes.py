"""Names for arrays of one type; their shapes stand where they are used, as f32[N, D]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "Greys", "Ints", "Masks", "Singles"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Greys = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]
