"""Which heat map finds the lesion: every method of `thoraclip explain`, and two baselines that have seen nothing, side
by side.

    python -m benchmarks.explanations
    python -m benchmarks.explanations --masks covid-qu-ex-sample --run study/runs/linear-probe

Without --masks: phantoms of 128 pixels and difficulty 0, whose lesions are known because they were drawn, and two
classifiers on the shipped tiny-clip, its vision tower fine-tuned and a probe on its features. With --masks: a folder of
the data set COVID-QU-Ex and a finished run, --run. Only test images with a lesion that the classifier gets right are
judged, unless --wrong-too. Columns:

    pointing    share of maps whose hottest pixel lies in a lesion, or within 3 % of the side of it
    mass        share of the map's mass in the lesions; behind it, over the lesions' share of the area
    deletion    area under the probability while the hottest pixels are blurred away first: less is better
    insertion   area under the probability while they come back first: more is better
    head, all   rank correlation with the map of the same network with a random head, or with all weights shuffled
    seconds     for one map

Intervals of 95 % resample the images.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.measure import once, options, phantoms, seconds
from benchmarks.results import Result

import thoraclip
from benchmarks import saliency
from thoraclip.data.index import index
from thoraclip.data.masks import fit_mask, read_mask
from thoraclip.evaluation.intervals import Estimate
from thoraclip.heatmaps import MAPS, default_map, heat_map
from thoraclip.heatmaps.perturbation import blurred, resized
from thoraclip.imaging import decode, fit, normalise
from thoraclip.methods.predictors import read_run
from thoraclip.models.backbones import Backbone
from thoraclip.models.classifiers import Classifier
from thoraclip.predictor import Predictor
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import read_predictions

Grey = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Case = tuple[Grey, npt.NDArray[np.bool_], int]
"""Picture as the network takes it, lesions in it, class."""
EASY = {"size": 128, "difficulty": 0.0, "infection_fraction": 1.0}
"""Phantoms with known lesions."""


def random_map(grey: Grey) -> Heat:
    """f32[S, S] of smooth noise that has seen neither picture nor class."""
    return resized(np.random.default_rng([0, int(grey.sum())]).random((8, 8)), *grey.shape)


def centre(grey: Grey) -> Heat:
    """f32[S, S], a Gaussian at the centre, its deviation a quarter of the side: chests are centred."""
    side = grey.shape[0]
    along = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 4)) ** 2)
    return np.outer(along, along).astype(np.float32)


BASELINES: Mapping[str, Callable[[Grey], Heat]] = {"random": random_map, "centre": centre}
"""Not explanations: what an explanation must beat."""


def perturbation_curves(
    predictor: Predictor, grey: Grey, heat: Heat, class_index: int, *, steps: int = 16
) -> tuple[Floats, Floats]:
    """Deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421, section 4.2).

    Deletion blurs the pixels away from the hottest to the coldest, insertion brings them back into the blurred picture
    in the same order. Both stand in for removal by the same blur, where the paper deletes to grey.

    Args:
        predictor, grey, class_index: as in `heatmaps.heat_map`.
        heat: f32[S, S]; equal values are taken in reading order.
        steps: K, equal shares of the pixels.

    Returns:
        The probability of the class after 0, 1, ..., K steps, deletion and insertion, each f64[K + 1].
    """
    fill = blurred(grey)
    order = np.argsort(-heat, axis=None, kind="stable")
    rank = np.empty(heat.size, np.int64)
    rank[order] = np.arange(heat.size)
    limits = np.round(np.linspace(0, heat.size, steps + 1)).astype(np.int64)
    hot = rank.reshape(heat.shape) < limits[:, None, None]
    deletion, insertion = (
        predictor.predict(normalise(np.where(mask, grey, fill), predictor.preprocess))[:, class_index]
        for mask in (~hot, hot)
    )
    return deletion.astype(np.float64), insertion.astype(np.float64)


def cases(
    manifest: Manifest, classifier: Classifier, given: argparse.Namespace, names: Mapping[str, str] = {}
) -> tuple[list[Case], int]:
    """(test images with a lesion that the classifier gets right, how many have a lesion); `names`: label -> the
    classifier's."""
    found, looked, spec = [], 0, classifier.preprocess
    columns = (manifest.column(name) for name in ("label", "split", "infection_mask"))
    for path, label, split, mask_file in zip(manifest.paths(), *columns, strict=True):
        if mask_file is None or split != "test" or len(found) == given.limit:
            continue
        pixels = decode(path).pixels
        lesion = fit_mask(read_mask(manifest.root / mask_file, pixels.shape), spec)
        grey, c = np.array(fit(pixels, spec)), classifier.labels.index(names.get(label, label))
        looked += bool(lesion.any())
        if lesion.any() and (given.wrong_too or int(classifier.look(grey[None])[1].argmax()) == c):
            found.append((grey, lesion, c))
    return found, looked


def randomised(classifier: Any, *, whole: bool) -> Classifier:
    """The same network with a random head, or with the entries of each of its weights shuffled (Adebayo et al.
    2018)."""
    generator = torch.Generator().manual_seed(0)

    def shuffled(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape)

    if isinstance(classifier, Backbone):
        twin = replace(classifier, network=copy.deepcopy(classifier.network))
        chosen = twin.network.parameters() if whole else twin.head_parameters.values()
    else:
        head = replace(classifier.head, weight=shuffled(torch.from_numpy(classifier.head.weight)).numpy())
        twin = replace(classifier, head=head)
        if whole:
            twin = replace(twin, encoder=replace(twin.encoder, model=copy.deepcopy(twin.encoder.model)))
        chosen = twin.network.parameters() if whole else []
    with torch.no_grad():
        for tensor in chosen:
            tensor.copy_(shuffled(tensor))
    return twin


def cell(found: Estimate, digits: int = 2) -> str:
    value = f"{found.value:.{digits}f}"
    return value if found.low is None else f"{value} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def heats(classifier: Classifier, judged: list[Case], method: str) -> tuple[list[Heat], list[float]]:
    """(the map of each picture, its seconds)."""
    found: list[Heat] = []

    def draw(grey: Grey, c: int) -> None:
        found.append(BASELINES[method](grey) if method in BASELINES else heat_map(classifier, grey, c, method=method))

    took = [once(lambda g=g, c=c: draw(g, c)) for g, _, c in judged]
    return found, took


def row(
    classifier: Classifier, twins: list[Classifier], judged: list[Case], method: str, given: argparse.Namespace
) -> list[str]:
    """The cells of a method."""
    found, took = heats(classifier, judged, method)
    several, alike = [], []
    for number, ((grey, lesion, c), heat) in enumerate(zip(judged, found, strict=True)):
        curves = perturbation_curves(classifier, grey, heat, c, steps=given.steps)
        where = saliency.points_at(heat, lesion), saliency.mass_share(heat, lesion), lesion.mean()
        several.append([*where, *map(saliency.curve_area, curves)])
        if number < given.sanity and method in MAPS:
            others = [heat_map(twin, grey, c, method=method) for twin in twins]
            alike.append([saliency.rank_correlation(heat, other) for other in others])
    hits, mass, area, deletion, insertion = np.array(several, dtype=np.float64).T
    mean = saliency.mean_with_interval
    pointing, over = cell(mean(hits, is_share=True)), cell(saliency.ratio_with_interval(mass, area), 1)
    means = [f"{value:.2f}" for value in np.mean(alike, axis=0)] if alike else ["-", "-"]
    areas = [cell(mean(values)) for values in (deletion, insertion)]
    return [pointing, f"{mean(mass).value:.2f}, {over} x", *areas, *means, f"{np.median(took):.2f}"]


def table(title: str, classifier: Classifier, judged: list[Case], looked: int, given: argparse.Namespace) -> None:
    """Print the rows of every method as they are found."""
    area = 100 * np.mean([lesion.mean() for _, lesion, _ in judged])
    of = f"{len(judged)} images judged of {looked} looked at with a lesion"
    print(f"**{title}**: {of}; lesions cover {area:.1f} % of a picture.\n")
    print(f"| method | pointing | mass | deletion | insertion | head | all | seconds |\n{'|---' * 8}|")
    twins = [randomised(classifier, whole=whole) for whole in (False, True)]
    for method in (*MAPS, *BASELINES):
        print(f"| {method} | {' | '.join(row(classifier, twins, judged, method, given))} |", flush=True)


def on_phantoms(root: Path, given: argparse.Namespace) -> None:
    """Two classifiers trained on phantoms."""
    found = phantoms(root, given.images, **EASY)
    tuning = {"epochs": given.epochs, "learning_rate": 3e-4, "warmup_steps": 20}
    thoraclip.baseline(found, out=root / "tower", model="tiny-clip", **tuning)
    thoraclip.probe(found, out=root / "probe", model="tiny-clip")
    for name, title in (("tower", "Phantoms, vision tower fine-tuned"), ("probe", "Phantoms, linear probe")):
        scored = read_predictions(root / name / "predictions.parquet").judged()
        right = np.mean(scored.scores.argmax(axis=1) == scored.target)
        classifier = read_run(root / name).classifier(None, found.label_set())
        table(f"{title} (test accuracy {right:.2f})", classifier, *cases(found, classifier, given), given)


def real(given: argparse.Namespace) -> None:
    """A finished run, on other radiographs."""
    run, labels = read_run(given.run), read_predictions(given.run / "predictions.parquet").labels
    classifier = run.classifier(run.folds[0], labels)
    own = {"COVID-19": "covid", "Normal": "normal", "Non-COVID": "pneumonia"}
    names = {name: other for name, other in own.items() if name not in labels.names}
    found = index(given.masks, layout="covid-qu-ex").manifest
    table("Radiographs, linear probe", classifier, *cases(found, classifier, given, names), given)


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """A reduced accuracy: the default map of a probe on tiny-clip points at lesions of phantoms, against a Gaussian at
    the centre."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        manifest = phantoms(Path(folder), 120 if quick else 900, **EASY)
        thoraclip.probe(manifest, out=Path(folder) / "probe", model="tiny-clip")
        classifier = read_run(Path(folder) / "probe").classifier(None, manifest.label_set())
        judged, _ = cases(manifest, classifier, argparse.Namespace(limit=3 if quick else 40, wrong_too=False))
    method, looking = default_map(classifier), seconds(lambda: classifier.look(judged[0][0][None]))
    share, spent = {}, {}
    for name in (method, "centre"):
        found, took = heats(classifier, judged, name)
        hits = [saliency.points_at(heat, lesion) for heat, (_, lesion, _) in zip(found, judged, strict=True)]
        share[name], spent[name] = float(np.mean(hits)), float(np.median(took))
    better = share[method] / max(share["centre"], 1 / len(judged))
    centre = f"a Gaussian at the centre, {100 * share['centre']:.0f} % of {len(judged)} phantoms"
    answer, took = f"one answer of the network, {1000 * looking:.1f} ms", spent[method]
    return [
        Result(f"{method} points at a lesion", better, 1, centre, 100 * share[method], "%"),
        Result.small(f"one map by {method}", took / looking, None, answer, 1000 * took, "ms"),
    ]


def main() -> None:
    sizes = {"images": 2400, "epochs": 10, "limit": 30, "sanity": 6, "steps": 16}
    given = options(__doc__, masks=None, run=None, wrong_too=False, **sizes)
    if given.masks:
        real(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        on_phantoms(Path(folder), given)


if __name__ == "__main__":
    main()
