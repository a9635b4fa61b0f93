"""Which heat map finds the lesion: every method of `thoraclip explain`, and two baselines that have seen nothing, side by side.

    python -m benchmarks.explanations --out explanations.md
    python -m benchmarks.explanations --masks covid-qu-ex-sample --run study/runs/linear-probe --out real.md

Without --masks: phantoms of 128 pixels and difficulty 0, whose lesions are known because they were drawn, and two
classifiers on the shipped tiny-clip, its vision tower fine-tuned and a probe on its features. With --masks: a folder of the
data set COVID-QU-Ex and a finished run, --run. Only test images with a lesion that the classifier gets right are judged, unless --wrong-too. Columns:

    pointing    share of maps whose hottest pixel lies in a lesion, or within 3 % of the side of it
    mass        share of the map's mass in the lesions; behind it, over the lesions' share of the area
    deletion    area under the probability while the hottest pixels are blurred away first: less is better
    insertion   area under the probability while they come back first: more is better
    head, all   rank correlation with the map of the same network with a random head, or with all weights shuffled
    seconds     for one map

Intervals of 95 % resample the images. --cache keeps phantoms, runs and decoded pictures.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.measure import once, options, seconds
from benchmarks.results import Result

import thoraclip
from thoraclip.data.index import index
from thoraclip.data.masks import fit_mask, read_mask
from thoraclip.heatmaps import BASELINES, MAPS, default_map, heat_map
from thoraclip.heatmaps.perturbation import perturbation_curves
from thoraclip.imaging import decode, fit
from thoraclip.judge.intervals import Estimate
from thoraclip.judge.saliency import (
    curve_area,
    mass_share,
    mean_with_interval,
    points_at,
    rank_correlation,
    ratio_with_interval,
)
from thoraclip.methods.predictors import read_run
from thoraclip.models.backbones import Backbone
from thoraclip.models.classifiers import Classifier, EncoderClassifier
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import read_predictions

Grey = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]
Case = tuple[Grey, npt.NDArray[np.bool_], int]
"""Picture as the network takes it, lesions in it, class."""


def cases(
    manifest: Manifest, classifier: Classifier, name_of: Callable[[str], str], given: argparse.Namespace
) -> tuple[list[Case], int]:
    """(images with a lesion that the classifier gets right, how many have a lesion)."""
    found, looked = [], 0
    spec = classifier.preprocess
    columns = (manifest.column(name) for name in ("label", "split", "infection_mask"))
    for path, label, split, mask_file in zip(manifest.paths(), *columns, strict=True):
        if mask_file is None or split != "test" or len(found) == given.limit:
            continue
        pixels = decode(path).pixels
        lesion = fit_mask(read_mask(manifest.root / mask_file, pixels.shape), spec)
        if not lesion.any():
            continue
        looked += 1
        grey, c = np.array(fit(pixels, spec)), classifier.labels.index(name_of(label))
        if given.wrong_too or int(classifier.look(grey[None])[1].argmax()) == c:
            found.append((grey, lesion, c))
    return found, looked


def randomised(classifier: Classifier, *, whole: bool) -> Classifier:
    """The same network with a random head, or with the entries of each of its weights shuffled (Adebayo et al. 2018)."""
    generator = torch.Generator().manual_seed(0)
    twin: Any = classifier
    if isinstance(classifier, Backbone):
        twin = replace(classifier, network=copy.deepcopy(classifier.network))
        chosen = twin.network.parameters() if whole else twin.head_parameters.values()
    elif isinstance(classifier, EncoderClassifier):
        weight = torch.from_numpy(classifier.head.weight)
        shuffled = weight.flatten()[torch.randperm(weight.numel(), generator=generator)].reshape(weight.shape).numpy()
        encoder = (
            replace(classifier.encoder, model=copy.deepcopy(classifier.encoder.model)) if whole else classifier.encoder
        )
        twin = EncoderClassifier(encoder, replace(classifier.head, weight=shuffled), classifier.features)
        chosen = twin.network.parameters() if whole else []
    with torch.no_grad():
        for tensor in chosen:
            tensor.copy_(tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape))
    return twin  # type: ignore[no-any-return]


def cell(found: Estimate, digits: int = 2) -> str:
    value = f"{found.value:.{digits}f}"
    return value if found.low is None else f"{value} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def heats(classifier: Classifier, judged: list[Case], method: str) -> tuple[list[Heat], list[float]]:
    """(the map of each picture, its seconds)."""
    found: list[Heat] = []
    took = [
        once(lambda grey=grey, c=c: found.append(heat_map(classifier, grey, c, method=method))) for grey, _, c in judged
    ]
    return found, took


def row(
    classifier: Classifier, twins: list[Classifier], judged: list[Case], method: str, given: argparse.Namespace
) -> list[str]:
    hits, masses, areas, curves, alike = [], [], [], [], []
    found, took = heats(classifier, judged, method)
    for number, ((grey, lesion, c), heat) in enumerate(zip(judged, found, strict=True)):
        hits.append(points_at(heat, lesion))
        masses.append(mass_share(heat, lesion))
        areas.append(lesion.mean())
        curves.append(
            [curve_area(curve) for curve in perturbation_curves(classifier, grey, heat, c, steps=given.steps)]
        )
        if number < given.sanity and method in MAPS:
            alike.append([rank_correlation(heat, heat_map(twin, grey, c, method=method)) for twin in twins])
    mass, area = np.array(masses), np.array(areas)
    deletion, insertion = np.array(curves).T
    means = [f"{value:.2f}" for value in np.mean(alike, axis=0)] if alike else ["-", "-"]
    share, ratio = mean_with_interval(mass), ratio_with_interval(mass, area)
    return [cell(mean_with_interval(np.array(hits, float), is_share=True)), f"{share.value:.2f}, {cell(ratio, 1)} x",
            cell(mean_with_interval(deletion)), cell(mean_with_interval(insertion)), *means, f"{np.median(took):.2f}"]  # fmt: skip


def table(title: str, classifier: Classifier, judged: list[Case], looked: int, given: argparse.Namespace) -> list[str]:
    area = np.mean([lesion.mean() for _, lesion, _ in judged])
    lines = [f"**{title}**: {len(judged)} images judged of {looked} looked at with a lesion; lesions cover {100 * area:.1f} % of a picture.", "",
             "| method | pointing | mass | deletion | insertion | head | all | seconds |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    twins = [randomised(classifier, whole=whole) for whole in (False, True)]
    for method in (*MAPS, *BASELINES):
        lines.append(f"| {method} | {' | '.join(row(classifier, twins, judged, method, given))} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def draw(cache: Path, images: int) -> Manifest:
    """Phantoms with known lesions, and their manifest, below `cache`."""
    from thoraclip.data.phantom import PhantomConfig, write_phantoms

    write_phantoms(cache / "phantoms", PhantomConfig(images=images, size=128, difficulty=0.0, infection_fraction=1.0))
    return thoraclip.index(cache / "phantoms", out=cache / "phantoms.parquet").manifest


def phantoms(given: argparse.Namespace) -> list[str]:
    found = draw(given.cache, given.images)
    tuning = {"epochs": given.epochs, "learning_rate": 3e-4, "warmup_steps": 20}
    thoraclip.baseline(found, out=given.cache / "tower", model="tiny-clip", **tuning)
    thoraclip.probe(found, out=given.cache / "probe", model="tiny-clip")
    lines = []
    for name, title in (("tower", "Phantoms, vision tower fine-tuned"), ("probe", "Phantoms, linear probe")):
        scored = read_predictions(given.cache / name / "predictions.parquet").judged()
        right = np.mean(scored.scores.argmax(axis=1) == scored.target)
        classifier = read_run(given.cache / name).classifier(None, found.label_set())
        judged, looked = cases(found, classifier, str, given)
        lines += table(f"{title} (test accuracy {right:.2f})", classifier, judged, looked, given)
    return lines


def real(given: argparse.Namespace) -> list[str]:
    run = read_run(given.run)
    labels = read_predictions(given.run / "predictions.parquet").labels
    classifier = run.classifier(run.folds[0], labels)
    found = index(given.masks, layout="covid-qu-ex").manifest
    names = {"COVID-19": "covid", "Normal": "normal", "Non-COVID": "pneumonia"}
    judged, looked = cases(found, classifier, lambda name: name if name in labels.names else names[name], given)
    return table("Radiographs, linear probe", classifier, judged, looked, given)


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """A reduced accuracy: the default map of a probe on tiny-clip points at lesions of phantoms, against a Gaussian at the centre."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        manifest = draw(Path(folder), 120 if quick else 900)
        thoraclip.probe(manifest, out=Path(folder) / "probe", model="tiny-clip")
        classifier = read_run(Path(folder) / "probe").classifier(None, manifest.label_set())
        given = argparse.Namespace(limit=3 if quick else 40, wrong_too=False)
        judged, _ = cases(manifest, classifier, str, given)
    method, looking = default_map(classifier), seconds(lambda: classifier.look(judged[0][0][None]))
    share, spent = {}, {}
    for name in (method, "centre"):
        found, took = heats(classifier, judged, name)
        share[name] = float(
            np.mean([points_at(heat, lesion) for heat, (_, lesion, _) in zip(found, judged, strict=True)])
        )
        spent[name] = float(np.median(took))
    return [
        Result(
            f"{method} points at a lesion", share[method] / max(share["centre"], 1 / len(judged)), 1,
            f"a Gaussian at the centre, {100 * share['centre']:.0f} % of {len(judged)} phantoms", 100 * share[method], "%",
        ),
        Result(f"one map by {method}", spent[method] / looking, None, f"one answer of the network, {1000 * looking:.1f} ms", 1000 * spent[method], "ms",
               higher_is_better=False),
    ]  # fmt: skip


def main() -> None:
    given = options(
        __doc__, masks=None, run=None, images=2400, epochs=10, limit=30, wrong_too=False,
        sanity=6, steps=16, cache=Path("explanations-cache"), out=Path("explanations.md"),
    )  # fmt: skip
    lines = real(given) if given.masks else phantoms(given)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
