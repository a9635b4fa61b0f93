"""Where the lungs are in a frontal chest radiograph: an estimate where no mask is given; which to use is the rule of `regions`.

    u8[H, W] --evidence--> local contrast, darkness --shape--> two fitted outlines --contour--> borders --> bool[H, W]

The estimate is classical image processing without a trained part, so it carries nothing over from any data set's classes.
It is an estimate: it names what is odd about itself, and what is implausible is never used without being listed.
"""

from __future__ import annotations

from thoraclip.data.lungs.estimation import LEAST_QUALITY, LungEstimate, estimate_lungs, oddities

__all__ = ["LEAST_QUALITY", "LungEstimate", "estimate_lungs", "oddities"]
