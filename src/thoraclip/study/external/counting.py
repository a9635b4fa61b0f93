"""What an external set adds to a study, counted as `study.counting` counts the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thoraclip.errors import ThoraclipError
from thoraclip.methods.predictors import CLASSIFYING
from thoraclip.study.counting import Counting
from thoraclip.study.external.images import listed_images
from thoraclip.study.external.scoring import is_scored
from thoraclip.study.external.settings import External
from thoraclip.study.settings import MethodEntry, StudyConfig
from thoraclip.study.tasks import Task, Unit, Work, training_unit
from thoraclip.tables.manifest import Manifest, read_manifest

__all__ = ["external_work"]

_BATCH, _MOST_TO_RESAMPLE = 64, 4000


def external_work(
    external: External, methods: Sequence[MethodEntry], counting: Counting, config: StudyConfig, out: Path
) -> Work:
    """Comparing a set with the study's pictures, and a pass of its images through every network that is not scored yet.

    The passes are counted on all labelled images of the set: which of them the study has, too, is not known before. Decoding
    counts once, at the first encoder's size.

    Args:
        external: the set.
        methods: those that can run.
        counting: of the study; it knows whether its pictures are measured already.
        config, out: of the study; `out` is only read.
    """
    work = Work(f"external {external.name}", "stage")
    try:
        images = listed_images(external, counting.manifest.label_set(config.classes))
    except ThoraclipError as error:
        work.error = str(error)
        return work
    own, n = out / "external" / external.name, len(images)
    if external.folder and not (own / "manifest.facts.jsonl").is_file():
        work.tasks.append(Task(Unit("index"), size=n))
    if not (own / "pairs.json").is_file():
        work.tasks += [*counting.inspect_once(), Task(Unit("inspect"), size=n)]
        work.tasks.append(Task(Unit("duplicates"), size=n + len(counting.manifest)))
    passes = dict(_passes(external, methods, counting.manifest, out))
    for unit in passes.values():
        if unit.kind == "encode":
            work.tasks.append(Task(Unit("load", replace(unit.config, batch_size=_BATCH))))
        work.tasks.append(Task(unit, size=n, encoded=n, what="score"))
    tables = sum(max(1, len(m.seeds)) for m in methods) + len(passes)
    judged = min(max(n, len(counting.manifest)), _MOST_TO_RESAMPLE)
    work.tasks.append(Task(Unit("resample", about=(judged,)), size=tables * judged * config.resamples))
    if not passes and (own / "pairs.json").is_file():
        work.cached = ["scores"]
    return work


def _passes(
    external: External, methods: Sequence[MethodEntry], study: Manifest, out: Path
) -> Iterator[tuple[tuple[Any, ...], Unit]]:
    """(what tells two passes apart, the unit of one pass), of the networks whose scores are not there."""
    from thoraclip.methods.encoders import EncoderConfig

    kept = _kept(out / "external" / external.name / "manifest.parquet")
    folds = sorted({fold for fold in study.column("fold") if fold is not None})
    for method in methods:
        if method.kind not in CLASSIFYING:
            continue
        for _, config, folder in method.runs(out / "runs"):
            held_out = [fold for fold in folds if not config.only_folds or fold in config.only_folds] or [None]
            for fold in held_out:
                if kept and is_scored(folder, external.name, fold, kept):
                    continue
                if method.kind == "baseline":
                    yield (str(folder), fold), replace(training_unit(config), kind="validate")
                    continue
                adapter = str(folder) if method.kind == "finetune" else config.adapter
                encoder = EncoderConfig(
                    model=config.model, geometry=config.geometry, precision=config.precision, batch_size=_BATCH
                )
                yield (encoder, adapter, fold if adapter else None), Unit("encode", encoder)


def _kept(file: Path) -> Manifest | None:
    try:
        return read_manifest(file, may_leak=True)
    except ThoraclipError:
        return None
