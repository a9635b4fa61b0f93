"""What is chosen for a phantom before anything is drawn: patient, exposure, confounders, finding; and its caption.

Lengths in the image plane are in *half fields*: 1.0 is half the image, about 18 cm in the patient. The origin is the
image centre, x grows to the viewer's right (the patient's left), y grows downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from thoraclip.ranges import OneOf

__all__ = [
    "CLASSES", "DEVICES", "PLANTED", "SHORTCUTS", "Body", "Pose", "Shortcut", "choose_attributes", "describe",
    "shape_body",
]  # fmt: skip

CLASSES = ("COVID-19", "Non-COVID", "Normal")
SHORTCUTS = ("marker", "border", "exposure", "device", "texture", "date")
Shortcut = Annotated[str, OneOf(("", *SHORTCUTS))]
"""Empty for none."""
DEVICES = ("ECG leads", "central venous line", "endotracheal tube", "pacemaker")

PLANTED: dict[str, dict[str, Any]] = {
    "marker": {"COVID-19": "AP PORTABLE", "Non-COVID": "R", "Normal": "L"},
    "border": {"COVID-19": "wide", "Non-COVID": "narrow", "Normal": "none"},
    "exposure": {"COVID-19": "under", "Non-COVID": "normal", "Normal": "over"},
    "device": {"COVID-19": ("ECG leads",), "Non-COVID": ("central venous line",), "Normal": ()},
    "texture": {"COVID-19": "grainy", "Non-COVID": "standard", "Normal": "smooth"},
    "date": {"COVID-19": "12.04.2020", "Non-COVID": "12.04.2016", "Normal": "12.04.2018"},
}
"""The confounder's value that a planted shortcut ties to each class."""
_WALL = {"slim": 0.07, "average": 0.12, "large": 0.21}
_DEPTH_CM = {"slim": 18.5, "average": 21.0, "large": 25.0}


@dataclass(frozen=True, kw_only=True)
class Body:
    """A patient's anatomy; half fields unless the name says otherwise."""

    build: str
    sex: str
    age_years: int
    depth_cm: float
    wall: float
    cage: float
    apex: float
    spacing: float
    drop: float
    rib_phase: float
    rib_shift: tuple[float, ...]
    heart: float
    tilt: float
    knob: float
    curve: float
    dome: float
    breast: float
    bubble: float
    clavicle: float
    hilum: float
    tree_seed: int


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How the patient stood before the detector for one exposure."""

    rotation_degrees: float
    turn: float
    shift_x: float
    shift_y: float
    zoom: float
    breath: float
    supine: bool  # AP view: magnified heart, high clavicles, scapulae over the lungs, raised diaphragm


def shape_body(rng: np.random.Generator) -> Body:
    """Draw a patient: sex, age, build and the sizes of what is inside; nothing here knows of a disease."""
    sex = str(rng.choice(["F", "M"]))
    build = str(rng.choice(list(_WALL), p=[0.3, 0.45, 0.25]))
    age = int(np.clip(rng.normal(54, 17), 18, 94))

    def near(mean: float, spread: float) -> float:
        return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

    return Body(
        build=build,
        sex=sex,
        age_years=age,
        depth_cm=_DEPTH_CM[build] * near(1, 0.04),
        wall=_WALL[build] * near(1, 0.12),
        cage=near(0.745 if sex == "M" else 0.71, 0.025),
        apex=near(-0.76, 0.03),
        spacing=near(0.150, 0.007),
        drop=near(0.20, 0.03),
        rib_phase=float(rng.uniform()),
        rib_shift=tuple(rng.normal(0, 0.04, 24).tolist()),
        heart=near(1.0 + 0.002 * (age - 54), 0.07),
        tilt=near(0.62, 0.08),
        knob=near(0.075 + 0.0005 * (age - 54), 0.01),
        curve=near(0, 0.012),
        dome=near(0.50, 0.04),
        breast=max(0.0, near(2.2, 0.7)) if sex == "F" else 0.0,
        bubble=max(0.0, near(0.6, 0.5)),
        clavicle=near(0.0, 0.02),
        hilum=near(1.0, 0.15),
        tree_seed=int(rng.integers(2**31)),
    )


def _pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    return str(rng.choice(list(weights), p=list(weights.values())))


def choose_attributes(
    label: str,
    body: Body,
    *,
    rng: np.random.Generator,
    difficulty: float,
    shortcut: str = "",
    shortcut_strength: float = 0.0,
) -> dict[str, Any]:
    """Choose an image's attributes; apart from a planted shortcut and the finding, nothing looks at `label`.

    The number of draws does not depend on the label, so a clean set is independent of the class by construction. The
    arguments are those of `draw_phantom`, which goes on with `rng`; the difficulty is only noted.
    """
    view = _pick(rng, {"PA": 0.55, "AP": 0.45})
    portable = view == "AP"
    marker = _pick(
        rng, {"AP PORTABLE": 0.40, "L": 0.22, "R": 0.23, "": 0.15} if portable else {"L": 0.42, "R": 0.33, "": 0.25}
    )
    chance = (0.45, 0.28, 0.16, 0.06) if portable else (0.05, 0.04, 0.0, 0.05)
    held = rng.uniform(size=len(DEVICES))
    attributes: dict[str, Any] = {
        "view": view,
        "sex": body.sex,
        "age_years": body.age_years,
        "build": body.build,
        "exposure": _pick(rng, {"under": 0.25, "normal": 0.5, "over": 0.25}),
        "texture": _pick(rng, {"smooth": 0.3, "standard": 0.4, "grainy": 0.3}),
        "rotation_degrees": round(float(np.clip(rng.normal(0, 3.5 if portable else 1.5), -9, 9)), 1),
        "turn": round(float(np.clip(rng.normal(0, 0.6 if portable else 0.3), -1.4, 1.4)), 2),
        "inspiration": round(float(np.clip(rng.normal(0, 1), -2, 2)), 2),
        "devices": tuple(name for name, p, u in zip(DEVICES, chance, held, strict=True) if u < p),
        "marker": marker,
        "border": _pick(rng, {"none": 0.5, "narrow": 0.3, "wide": 0.2}),
        "difficulty": difficulty,
        "shortcut": shortcut,
        "shortcut_strength": shortcut_strength,
    }
    if shortcut == "date":  # else no image has one
        attributes["date"] = str(rng.choice(list(PLANTED["date"].values())))
    planted = bool(rng.uniform() < shortcut_strength) and bool(shortcut)
    attributes["shortcut_planted"] = planted
    if planted:
        attributes["devices" if shortcut == "device" else shortcut] = PLANTED[shortcut][label]
    side = _pick(rng, {"right": 0.5, "left": 0.5})
    zone = _pick(rng, {"upper": 0.27, "middle": 0.25, "lower": 0.48})
    severity = round(float(np.exp(np.clip(rng.normal(0, 0.33), -0.8, 0.8))), 3)  # thickness, typical is 1
    if label == "COVID-19":
        side, zone = "both", "peripheral"
    elif label == "Normal":
        side, zone, severity = "", "", 0.0
    return attributes | {"finding_side": side, "finding_zone": zone, "finding_severity": severity}


_PA = ("posteroanterior chest radiograph", "PA chest X-ray", "upright PA view of the chest", "frontal PA chest film")
_AP = ("anteroposterior chest radiograph", "AP chest X-ray", "supine AP view of the chest", "bedside AP chest film")
_BUILDS = {
    "slim": ("a slim patient", "a thin patient", "a patient of slight build"),
    "average": ("a patient of average build", "an average-sized patient", "a patient of medium build"),
    "large": ("a large patient", "a heavy patient", "a patient of large build"),
}
_EXPOSURES = {
    "under": ("underexposed, rather bright", "pale and underexposed", "a little underpenetrated"),
    "normal": ("well exposed", "properly exposed", "with good exposure"),
    "over": ("overexposed, rather dark", "dark and overexposed", "a little overpenetrated"),
}
_DEVICES = {
    "ECG leads": ("ECG leads", "monitoring electrodes and wires", "electrocardiogram leads"),
    "central venous line": ("a central venous line", "a central catheter", "a venous catheter"),
    "endotracheal tube": ("an endotracheal tube", "a breathing tube", "a tracheal tube"),
    "pacemaker": ("a pacemaker", "a pacemaker box with its wire", "an implanted pacemaker"),
}
_BORDERS = {
    "none": ("", "full field", "no black border"),
    "narrow": ("a narrow black border", "a thin dark frame"),
    "wide": ("a wide black border", "a broad dark frame"),
}
_TEXTURES = {
    "smooth": ("", "smooth image", "little noise"),
    "standard": ("", ""),
    "grainy": ("", "grainy image", "visible noise"),
}


def describe(attributes: dict[str, Any], rng: np.random.Generator) -> str:
    """Caption view, build, exposure, devices, markers, border and rotation in varied words; never the disease.

    Args:
        attributes: as in `Phantom.attributes`; its finding and label are not read.
        rng: chooses among synonyms and orders.

    Returns:
        One sentence of 10 to 45 words, such as "AP chest X-ray of a slim patient, well exposed, with ECG leads."
    """

    def say(words: Sequence[str]) -> str:
        return str(rng.choice(words))

    who = say(_BUILDS[attributes["build"]])
    if rng.uniform() < 0.4:
        sex = {"F": ("woman", "female"), "M": ("man", "male")}[attributes["sex"]]
        who = f"{who}, {attributes['age_years']} year old {say(sex)}"
    parts = [say(_EXPOSURES[attributes["exposure"]])]
    names = [say(_DEVICES[name]) for name in attributes["devices"]]
    parts.append(
        "with " + " and ".join(names) if names else say(["no lines or tubes", "without devices", "no devices"])
    )
    marker, angle = attributes["marker"], attributes["rotation_degrees"]
    written = [f"marked {marker}", f"{marker} marker", f"letters {marker} in the corner"]
    parts.append(say(written if marker else ["", "no marker", "without a side marker"]))
    way = "clockwise" if angle > 0 else "counterclockwise"
    parts.append(say([f"rotated {way}", f"tilted {way}"] if abs(angle) > 2.5 else ["", "straight", "not rotated"]))
    parts += [say(_BORDERS[attributes["border"]]), say(_TEXTURES[attributes["texture"]])]
    said = ", ".join(parts[i] for i in rng.permutation(len(parts)) if parts[i])
    text = f"{say(_PA if attributes['view'] == 'PA' else _AP)} of {who}, {said}."
    return text[0].upper() + text[1:]
