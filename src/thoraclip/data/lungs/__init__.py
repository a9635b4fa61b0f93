"""Where the lungs are in a frontal chest radiograph.

    estimation   one fixed outline, drawn after anatomy; placed on one image, or where lungs usually lie
    regions      the lung region of every image of an audit: given masks, one usual region for all, or a model's

Nothing is learnt from data, so no estimate carries over a data set's classes.
"""

from __future__ import annotations

from thoraclip.data.lungs.estimation import estimate_lungs, usual_lungs

__all__ = ["estimate_lungs", "usual_lungs"]
