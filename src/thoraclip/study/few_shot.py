"""Few-shot runs of a study: its methods trained again on a few labelled patients of each class, several times drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thoraclip.evaluation.learning_curve import FewShot
from thoraclip.evaluation.results import MethodResult
from thoraclip.methods.parts import labelled_patients, require_patients
from thoraclip.pages import counted
from thoraclip.study.settings import MethodEntry, StudyConfig
from thoraclip.tables.manifest import Manifest

__all__ = ["FewShotEntry", "few_shot_entries", "few_shot_results", "require_shots"]


@dataclass(frozen=True)
class FewShotEntry(MethodEntry):
    """A method of a study with so many shots; its seeds are those of the draws."""

    of: str = ""  # name of the method
    shots: int = 0

    def run_folder(self, out: Path, seed: int | None) -> Path:
        """Of the run of one draw, inside the folder of the method."""
        return out / "runs" / self.folder / f"shots-{self.shots}-draw-{seed}"


def few_shot_entries(config: StudyConfig, methods: Sequence[MethodEntry]) -> list[FewShotEntry]:
    """Every method that trains on images of the study, with every number of shots: in the order of the methods.

    A method after a fine-tuning uses the adapters of the same shots and draw, whose patients are the same. One that
    states shots of its own is left out.
    """
    made = dict[tuple[str, int], FewShotEntry]()
    draws = tuple((config.seeds[0] + draw) % 2**32 for draw in range(config.draws))
    for method in methods:
        for shots in sorted({number for number in config.shots if isinstance(number, int)}):
            after = made.get((method.after.name, shots)) if method.after else None
            if getattr(method.config, "shots", "all" if after else None) != "all" or (method.after and not after):
                continue
            own = {"shots": shots} if hasattr(method.config, "shots") else {}
            made[method.name, shots] = FewShotEntry(
                name=f"{method.name}, {counted(shots, 'shot')}",
                kind=method.kind,
                config=dataclasses.replace(method.config, **own),
                folder=method.folder,
                seeds=draws,
                after=after,
                of=method.name,
                shots=shots,
            )
    return list(made.values())


def require_shots(config: StudyConfig, manifest: Manifest) -> None:
    """Raise ManifestError where a class has fewer training patients than the largest number of shots.

    Args:
        config: of the study.
        manifest: the images, split.
    """
    if numbers := [shots for shots in config.shots if isinstance(shots, int)]:
        labels = manifest.label_set(config.classes)
        require_patients(labels, labelled_patients(manifest, labels, config.only_folds)[0], max(numbers))


def few_shot_results(
    config: StudyConfig, manifest: Manifest, results: Mapping[tuple[str, int], MethodResult]
) -> FewShot | None:
    """What the judge needs for the learning curve; `None` where no method was run with shots.

    Args:
        config: of the study.
        manifest: its images, split.
        results: (name of a method, shots) -> what came of it.
    """
    if not results:
        return None
    labels = manifest.label_set(config.classes)
    training, labelled = labelled_patients(manifest, labels, config.only_folds)
    return FewShot(
        runs=results,
        draws=config.draws,
        unit="patient" if any(patient is not None for patient in manifest.column("patient")) else "image",
        patients=dict(zip(labels.names, training.tolist(), strict=True)),
        labelled=dict(zip(labels.names, labelled.tolist(), strict=True)),
        with_all="all" in config.shots,
    )
