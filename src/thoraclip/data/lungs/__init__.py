"""Where the lungs are in a frontal chest radiograph: an estimate where no mask is given, and one rule for which to use.

    u8[H, W] --evidence--> local contrast, darkness --shape--> two fitted outlines --contour--> borders --> bool[H, W]

The estimate is classical image processing without a trained part, so it carries nothing over from any data set's classes.
It is an estimate: it names what is odd about itself, and what is implausible is never used without being listed.
"""

from __future__ import annotations

from thoraclip.data.lungs.estimation import LEAST_QUALITY, LungEstimate, estimate_lungs, oddities
from thoraclip.data.lungs.regions import SOURCES, LungRegions, lung_masks, require_mask_source

__all__ = [
    "LEAST_QUALITY",
    "SOURCES",
    "LungEstimate",
    "LungRegions",
    "estimate_lungs",
    "lung_masks",
    "oddities",
    "require_mask_source",
]
