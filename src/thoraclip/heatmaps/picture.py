"""One picture, one class, one heat map, and the sheet that shows it. See docs/explain.md for what it cannot tell."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from thoraclip.data.masks import mask_problem, read_mask
from thoraclip.dtypes import Greys, Masks, Singles
from thoraclip.errors import ConfigError, ImageError, InputError, did_you_mean
from thoraclip.heatmaps import MAPS, default_map, heat_map
from thoraclip.heatmaps.overlay import display_size, draw_overlay, spread
from thoraclip.heatmaps.perturbation import resized
from thoraclip.imaging import decode, fit, normalise
from thoraclip.imaging.lungs import estimate_lungs
from thoraclip.imaging.preprocessing import resize
from thoraclip.imaging.remedies import kept_box
from thoraclip.labels import LabelSet
from thoraclip.predictor import Predictor
from thoraclip.runs import atomic_open

__all__ = [
    "Explanation",
    "explain_picture",
    "explain_pixels",
    "overlay_png",
    "require_png",
    "require_question",
    "why_no_mask",
    "write_overlay",
]

_TEXT = "thoraclip"  # name of the text in the file


@dataclass(frozen=True)
class Explanation:
    """What one map says of one picture, at the size of `overlay.display_size`."""

    label: str  # the class that is explained
    scores: dict[str, float]  # probability of every class
    method: str  # a name in `MAPS`
    grey: Greys  # u8[H, W], the image
    heat: Singles  # f32[H, W], 0 or larger: evidence for the class
    seen: Masks  # bool[H, W]: what the network sees
    lungs: Masks  # bool[H, W]; nothing set where none were found
    lungs_from: str  # `given mask`, `estimated`, or `not found: ` and why the estimate is implausible
    note: str  # which classifier spoke

    @property
    def predicted(self) -> str:
        """The class with the highest probability."""
        return max(self.scores, key=lambda name: self.scores[name])

    @property
    def evidence_in_lungs(self) -> float | None:
        """Share of the map's mass inside the lungs; `None` without lungs or mass."""
        total = float(self.heat.sum(dtype=np.float64))
        return float(self.heat[self.lungs].sum(dtype=np.float64)) / total if self.lungs.any() and total else None

    @property
    def lung_area(self) -> float | None:
        """The lungs' share of what the network sees; `None` without lungs."""
        return float(self.lungs[self.seen].mean()) if self.lungs.any() else None

    def as_dict(self) -> dict[str, object]:
        """Its numbers, JSON-able."""
        names = ("predicted", "scores", "method", "evidence_in_lungs", "lung_area", "lungs_from", "note")
        shown = {name: getattr(self, name) for name in names}
        return {"class": self.label, "probability": self.scores[self.label], **shown}


def require_png(path: Path) -> None:
    """Raise InputError unless a sheet may bear this name, before anything is computed; what is there is an older sheet,
    or empty, as after a power cut."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: the sheet is a PNG; end the name in .png")
    if path.is_file() and (content := path.read_bytes()) and _TEXT.encode() + b"\0" not in content:
        raise InputError(f"{path}: is in the way, and no sheet of thoraclip; move it, or choose another --out")


def require_question(labels: LabelSet, class_name: str, method: str) -> None:
    """Raise ConfigError for no such class or method; empty ones are chosen later."""
    if method and method not in MAPS:
        raise ConfigError(f"--method: unknown method '{method}'{did_you_mean(method, MAPS)}")
    if class_name and class_name not in labels.names:
        raise ConfigError(f"--class: '{class_name}' is not one of the classes{did_you_mean(class_name, labels.names)}")


def explain_picture(
    classifier: Predictor,
    image: Path,
    *,
    mask: Path | None = None,
    bits: int | None = None,
    of_set: int | None = None,
    **options: Any,
) -> Explanation:
    """Score a PNG, JPEG or DICOM file and map the evidence for a class; `options` as in `explain_pixels`, checked by
    `require_question`.

    `bits` and `of_set` are the depth of 16-bit samples, see `imaging.decode`. The lungs are those of a mask file of
    this very image, or, for None, an estimate. Raises ImageError where the image or the mask cannot be decoded, or the
    mask is of another shape or tells nothing.
    """
    pixels = decode(image, bits=bits, of_set=of_set).pixels
    lungs = None if mask is None else read_mask(mask, pixels.shape)
    if lungs is not None and (problem := mask_problem(lungs)):
        raise ImageError(f"{mask}: {problem}; give another mask, or none")
    return explain_pixels(classifier, pixels, lungs=lungs, **options)


def explain_pixels(
    classifier: Predictor,
    pixels: Greys,
    *,
    class_name: str = "",
    method: str = "",
    lungs: Masks | None = None,
    note: str = "",
    seed: int = 0,
) -> Explanation:
    """Score a decoded image u8[H, W] and map the evidence for a class; `classifier` and `seed` as in `heat_map`.

    An empty `class_name` is the predicted class, an empty `method` that of `default_map`. Without `lungs` bool[H, W]
    they are estimated. `note` says which classifier this is. Raises ConfigError for a method that this network cannot
    be asked with.
    """
    method, names, lungs_from = method or default_map(classifier), classifier.labels.names, "given mask"
    if lungs is None:
        lungs, reason = estimate_lungs(pixels)
        lungs_from = f"not found: {reason}" if reason else "estimated"
    grey = fit(pixels, classifier.preprocess)
    scores = classifier.predict(normalise(grey[None], classifier.preprocess))[0].astype(np.float64)
    chosen = names.index(class_name) if class_name else int(scores.argmax())
    heat = heat_map(classifier, grey, chosen, method=method, seed=seed)
    height, width = display_size(*pixels.shape)
    box = kept_box(pixels, classifier.preprocess.remedy)
    sides = (width / pixels.shape[1], height / pixels.shape[0]) * 2
    left, top, right, bottom = (round(place * side) for place, side in zip(box, sides, strict=True))
    shown, seen = np.zeros((height, width), dtype=np.float32), np.zeros((height, width), dtype=bool)
    inner = spread(heat, classifier.preprocess, bottom - top, right - left)
    shown[top:bottom, left:right], seen[top:bottom, left:right] = inner
    return Explanation(
        label=names[chosen],
        scores=dict(zip(names, scores.tolist(), strict=True)),
        method=method,
        grey=np.asarray(resize(Image.fromarray(pixels), (width, height), Image.Resampling.BICUBIC)),
        heat=shown,
        seen=seen,
        lungs=(resized(lungs.astype(np.float32), height, width) > 0.5) & seen,
        lungs_from=lungs_from,
        note=note,
    )


def write_overlay(path: Path, explanation: Explanation) -> None:
    """Write the sheet as PNG, with its numbers as JSON in the file's text `thoraclip`; raises InputError where the name
    does not end in `.png`, or it cannot be written there."""
    require_png(path)
    with atomic_open(path) as stream:
        stream.write(overlay_png(explanation))


def overlay_png(e: Explanation) -> bytes:
    """The content of the file that `write_overlay` writes."""
    lines = [f"Evidence for {e.label}, by {e.method}"]
    if e.label != e.predicted:
        lines.append(f"Predicted: {e.predicted}, {e.scores[e.predicted]:.2f}")
    if not e.heat.any():
        lines.append("The map is empty: this method sees no evidence for the class")
    lines.append(f"Lung outline: {e.lungs_from}")
    inside, area = e.evidence_in_lungs, e.lung_area
    if area is not None and inside is not None:
        lines.append(
            f"{100 * inside:.0f} % of the evidence lies in the lungs, which cover {100 * area:.0f} % of the picture"
        )
    if not e.seen.all():
        lines.append("Shaded: outside what the network sees")
    if e.note:
        lines.append(e.note[0].upper() + e.note[1:])
    footer = "The colour is scaled to this picture's hottest place. A map is no proof. Research use, not for diagnosis."
    headline = f"{e.label}: {e.scores[e.label]:.2f}"
    sheet = draw_overlay(e.grey, e.heat, headline=headline, lines=lines, footer=footer, lungs=e.lungs, seen=e.seen)
    buffer, text = io.BytesIO(), PngInfo()
    text.add_text(_TEXT, json.dumps(e.as_dict()))
    sheet.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def why_no_mask(mask: Path, image: Path) -> str | None:
    """What keeps a mask file from being a picture's lungs; `None` where it serves."""
    pixels = decode(image).pixels
    try:
        return mask_problem(read_mask(mask, pixels.shape))
    except ImageError as error:
        return str(error).removeprefix(f"{mask}: ")
