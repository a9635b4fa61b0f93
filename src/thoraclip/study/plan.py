"""What `thoraclip study --dry-run` prints: what will run, on how many images, what is there already, and a rough time.

    settings -> manifest -> a row for each run and each stage: images encoded, images trained, what is cached
    one timed batch for each different model -> seconds of each row

Nothing is written but into a temporary folder.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.data.batches import decoded
from thoraclip.data.check.inspection import inspect
from thoraclip.data.splits import split_folds
from thoraclip.data.views import VIEWS
from thoraclip.errors import InputError, ThoraclipError, first_line
from thoraclip.imaging import Preprocess
from thoraclip.labels import load_prompts
from thoraclip.methods import find_method
from thoraclip.methods.caption import CAPTIONERS
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.methods.running import Part, is_done, parts, require_folds
from thoraclip.runs import digest, fold_folder
from thoraclip.study.external import listed_count
from thoraclip.study.images import list_images
from thoraclip.study.settings import CAPTIONS, OWN_CAPTIONS, MethodEntry, StudyConfig
from thoraclip.tables.arrays import is_valid
from thoraclip.tables.captions import read_captions
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint
from thoraclip.tables.manifest import Manifest, read_manifest

__all__ = ["FACTOR", "plan_study"]

FACTOR = 3
"""The true time lies within this factor of the estimate, if the machine does nothing else and no training stops
early."""
_SCHEMA = 2
_SAMPLE = 16
"""Images that are timed."""
_RUN_SECONDS = 2.0
"""Of a run beside its images: loading, fitting, small files."""
_RESAMPLE_SECONDS = 4e-8
"""For each image in each resample of the report; on a core of 2.5 GHz."""


@dataclass
class Row:
    """One run, or one stage of the study.

    Args:
        name, kind, seed: of the run; a stage is of kind `stage`.
        done: nothing is left to do.
        images_encoded, images_trained: images through a network, forward alone, or forward and backward.
        seconds: rough; `None` where it is not known.
        cached: what is on disk already, of `run`, `embeddings`.
        error: why it cannot run.
    """

    name: str
    kind: str = "stage"
    seed: int | None = None
    done: bool = False
    images_encoded: int = 0
    images_trained: int = 0
    seconds: float | None = None
    cached: list[str] = field(default_factory=list)
    error: str | None = None


@contextmanager
def _errors_of(row: Row) -> Iterator[None]:
    """What cannot run is an error of its row."""
    try:
        yield
    except (ThoraclipError, RuntimeError, OSError, MemoryError) as error:
        row.error = str(error) if isinstance(error, ThoraclipError) else first_line(error)
        row.seconds = None


def plan_study(
    config: StudyConfig,
    methods: Sequence[MethodEntry],
    out: Path,
    *,
    measure: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """What `run_study` would do, without doing it.

    Args:
        config, methods: from `read_study`.
        out: the study folder; it is only read.
        measure: time one batch of each model; else `seconds` stay `None`.
        announce: gets a line for each model that is timed.

    Returns:
        See docs/index.md. A run that cannot run has no time, and says why under `error`.
    """
    given = read_manifest(Path(config.manifest)) if config.manifest else None
    manifest, has_parts, missing = _split_manifest(out, given), True, ""
    is_kept = manifest is not None
    if manifest is None:
        try:
            manifest, has_parts = _expected(config, given)
        except ThoraclipError as error:
            missing = str(error)
    planner = _Planner(config, manifest, out, _Clock(manifest, announce) if measure and manifest else None)
    rows, failed = list[Row](), set[str]()
    for method in methods:
        for seed, settings, folder in method.runs(out / "runs"):
            rows.append(row := Row(method.name, method.kind, seed))
            with _errors_of(row):
                if method.after and method.after.name in failed:
                    raise InputError(f"its adapters are those of '{method.after.name}', which failed")
                if manifest is None:
                    raise InputError(missing)
                row.done = is_kept and is_done(method.kind, settings, manifest, folder)
                planner.run(row, settings, folder)
            failed |= {method.name} if row.error else set()
    is_finished = (out / "report.json").is_file() and all(row.done for row in rows)
    able = [method for method in methods if method.name not in failed]
    stages = list(planner.stages(able, has_parts=has_parts, is_finished=is_finished)) if manifest is not None else []
    known = [row.seconds for row in (*rows, *stages) if row.seconds is not None]
    return {
        "schema": _SCHEMA,
        "source": config.manifest or config.folder,
        "images": None if manifest is None else len(manifest),
        "runs": [dataclasses.asdict(row) for row in rows],
        "stages": [dataclasses.asdict(row) for row in stages],
        "totals": {
            "images_encoded": sum(row.images_encoded for row in (*rows, *stages)),
            "images_trained": sum(row.images_trained for row in (*rows, *stages)),
            "seconds": round(sum(known), 1) if measure else None,
            "factor": FACTOR,
            "complete": len(known) == len(rows) + len(stages),
        },
    }


def _split_manifest(out: Path, given: Manifest | None) -> Manifest | None:
    """The images as the study splits them: the given ones, where they have parts, or what an earlier run of the study
    left."""
    if given and any(part is not None for part in given.parts()):
        return given
    file = out / "manifest.parquet"
    kept = read_manifest(file) if file.is_file() else None
    if kept is None or given is None:
        return kept
    same = kept.content_fingerprint == given.content_fingerprint and kept.column("label") == given.column("label")
    return kept if same else None


def _expected(config: StudyConfig, given: Manifest | None) -> tuple[Manifest, bool]:
    """(the images as the study will split them, before any is decoded; False: the study makes the split)."""
    if given is None:
        given = list_images(config)
        if any(part is not None for part in given.parts()):
            return given, True
    return split_folds(given, folds=config.folds, seed=config.seeds[0]), False


class _Planner:
    """Fills rows in the order in which the study works, and remembers what earlier rows leave behind."""

    def __init__(self, config: StudyConfig, manifest: Manifest | None, out: Path, clock: _Clock | None) -> None:
        self.config, self.out, self.clock = config, out, clock
        self.manifest: Manifest = manifest  # type: ignore[assignment]  # nothing is planned without
        self._embedded = set[tuple[Any, ...]]()
        self._known_parts = dict[tuple[Any, ...], list[Part]]()

    @cached_property
    def folds(self) -> list[int]:
        """Of the manifest."""
        return sorted({fold for fold in self.manifest.column("fold") if fold is not None})

    def run(self, row: Row, config: Any, folder: Path) -> None:
        """Count one run; raises ThoraclipError where it cannot run."""
        if row.done:
            row.cached, row.seconds = ["run"], 0.0
            return
        method, seconds = find_method(row.kind), _RUN_SECONDS
        labels = self.manifest.label_set(config.classes)
        for name in labels.names if hasattr(config, "prompts") and getattr(config, "reads_prompts", True) else ():
            load_prompts(config.prompts).for_class(name)  # says what is missing
        if getattr(config, "captions", "") not in ("", OWN_CAPTIONS, str(self.out / CAPTIONS)):
            captions = read_captions(Path(config.captions))
            for part in self._parts(config):
                captions.rows_for(self.manifest, part.train)  # says what is missing
        if method.trains_network:
            seconds += sum(self._training(row, config, part) for part in self._parts(config))
        if method.embeds:
            seconds += sum(
                self._embedding(row, config, adapter) for adapter in self._adapters(row.kind, config, folder)
            )
        if method.fit_seconds:
            seconds += sum(method.fit_seconds * len(part.train) for part in self._parts(config))
        row.seconds = seconds if self.clock else None

    def _parts(self, config: Any) -> list[Part]:
        key = (config.classes, config.val_fraction, config.seed, config.only_folds)
        if key not in self._known_parts:
            labels = self.manifest.label_set(config.classes)
            self._known_parts[key] = list(parts(self.manifest, labels, val_fraction=key[1], seed=key[2], only=key[3]))
        return self._known_parts[key]

    def _training(self, row: Row, config: Any, part: Part) -> float:
        """Seconds of the steps, the validations and, where no features are kept, the scoring of one part."""
        from thoraclip.methods.training.sampler import Sampler

        targets = self.manifest.targets(self.manifest.label_set(config.classes))
        a_pass = Sampler(
            part.train,
            targets[part.train],
            total=len(targets),
            batch_size=config.batch_size,
            sampling=config.sampling,
            seed=config.seed,
        ).steps_per_epoch
        steps = config.steps or config.epochs * a_pass
        validations = 1 + -(-steps // (config.validate_every or a_pass))
        trained, encoded = steps * config.batch_size, validations * len(part.val)
        if not find_method(row.kind).embeds:
            encoded += len(part.test) + len(part.val)
        if getattr(config, "select", "") == "probe":  # each validation encodes both parts
            encoded += validations * (len(part.train) + len(part.val))
        row.images_trained += trained
        row.images_encoded += encoded
        passes = 4 if config.batch_size > config.chunk_size else 3  # a backward pass is two forward ones
        return float((passes * trained + encoded) * self._forward(row.kind, config))

    def _adapters(self, kind: str, config: Any, folder: Path) -> list[tuple[str, bool]]:
        """(adapter folder, whether it is there) of each pass over the images; `("", True)` where there is none."""
        from thoraclip.methods.adapters import with_adapter
        from thoraclip.models.files import adapter_folders

        require_folds(config.only_folds, self.folds)
        held_out = self._held_out(config)
        is_own = find_method(kind).trains_network
        source = Path(folder if is_own else config.adapter)
        if not is_own and not config.adapter:
            return [("", True)]
        kept = adapter_folders(source)
        if not is_own and not source.is_relative_to(self.out / "runs"):
            for fold in [None] if None in kept else held_out:
                with_adapter(config, fold)  # says what is missing
        if None in kept:
            return [(str(kept[None]), True)]
        return [(str(kept.get(fold, fold_folder(source, fold))), fold in kept) for fold in held_out]

    def _embedding(self, row: Row, config: Any, adapter: tuple[str, bool]) -> float:
        """Seconds of a pass of all images through an encoder, unless an earlier row or the cache has it."""
        folder, is_there = adapter
        scale = getattr(config, "adapter_scale", 1.0) if folder else 1.0
        key = (config.model, config.geometry, config.precision, folder, scale)
        if key in self._embedded:
            return 0.0
        self._embedded.add(key)
        if getattr(config, "embeddings", "") or (is_there and self._is_embedded(config, folder, scale)):
            row.cached = ["embeddings"]
            return 0.0
        row.images_encoded += len(self.manifest)
        return len(self.manifest) * self._forward(row.kind, config, embeds=True)

    def _is_embedded(self, config: Any, adapter: str, scale: float) -> bool:
        """True where the study's cache holds these features of these images; loads the encoder where there is any
        cache."""
        if not any((self.out / "embeddings").glob("*/embeddings.json")):
            return False
        encoder = _encoder(config, adapter=adapter, adapter_scale=scale)
        spec = encoder.preprocess.as_dict()
        fingerprint = embeddings_fingerprint(self.manifest, encoder.description, spec)
        return is_valid(self.out / "embeddings" / digest([encoder.description, spec])[:12], EMBEDDINGS, fingerprint)

    def _forward(self, kind: str, config: Any, *, embeds: bool = False) -> float:
        return self.clock.forward(config, is_dual=embeds or find_method(kind).embeds) if self.clock else 0.0

    def stages(self, methods: Sequence[MethodEntry], *, has_parts: bool, is_finished: bool) -> Iterator[Row]:
        """What is done beside the runs: preparing, captions, external sets, the audit, the report.

        Args:
            methods: those that can run.
            has_parts: the images have a split of their own, or the study has made one already.
            is_finished: the report of these runs is there.
        """
        config, n, clock = self.config, len(self.manifest), self.clock
        yield self._prepare(methods, has_parts=has_parts)
        reads_images = bool(config.captioner) and CAPTIONERS[config.captioner].reads_images
        if reads_images and any(method.has_own_captions for method in methods):
            file, row = self.out / CAPTIONS, Row("captions")
            row.done = file.is_file() and list(read_captions(file).image_id) == self.manifest.column("image_id")
            row.images_encoded = 0 if row.done else n
            with _errors_of(row):
                row.seconds = row.images_encoded * (clock.caption(config) if clock and not row.done else 0.0)
            yield row
        networks = [m for m in methods if find_method(m.kind).keeps_classifier]
        for one in config.external:
            row = Row(f"external {one.name}", done=is_finished and (self.out / "external" / one.name).is_dir())
            with _errors_of(row):
                images = listed_count(one, self.manifest.label_set(config.classes))
                self._scoring(row, self._encoders(networks), images)
            yield row
        audited = {"all": networks, "best": networks[-1:], "none": []}[config.audit]  # the last one stands for the best
        row = Row("audit", done=is_finished and (not audited or (self.out / "audits").is_dir()))
        with _errors_of(row):
            self._scoring(row, [m for m in audited for _ in VIEWS], min(n, config.audit_images or n))
        yield row
        tables = sum(3 + len(m.seeds) for m in methods)
        seconds = 0.0 if is_finished else tables * n * config.resamples * _RESAMPLE_SECONDS + _RUN_SECONDS
        yield Row("report", done=is_finished, seconds=seconds)

    def _prepare(self, methods: Sequence[MethodEntry], *, has_parts: bool) -> Row:
        """Indexing a folder, and measuring every image where copies are looked for or trees are fitted."""
        config, clock = self.config, self.clock
        passes = int(bool(config.folder) and not (self.out / "manifest.facts.jsonl").is_file())
        if not (self.out / "inspection" / "inspection.json").is_file():
            passes += (config.group_duplicates and not has_parts) or any(find_method(m.kind).inspects for m in methods)
        seconds = passes * len(self.manifest) * clock.inspect() if clock and passes else 0.0
        return Row("prepare", done=not passes, seconds=seconds)

    def _held_out(self, config: Any) -> list[int | None]:
        return [fold for fold in self.folds if fold in (config.only_folds or self.folds)] or [None]

    def _encoders(self, methods: Sequence[MethodEntry]) -> list[MethodEntry]:
        """One method for each different network of all runs and folds; heads on one encoder share its features."""
        found = dict[tuple[Any, ...], MethodEntry]()
        for method in methods:
            for _, config, folder in method.runs(self.out / "runs"):
                keys: list[tuple[Any, ...]] = [(folder, fold) for fold in self._held_out(config)]
                if find_method(method.kind).embeds:
                    adapters = self._adapters(method.kind, config, folder)
                    keys = [(config.model, config.geometry, config.precision, adapter) for adapter, _ in adapters]
                found |= dict.fromkeys(keys, method)
        return list(found.values())

    def _scoring(self, row: Row, classifiers: Sequence[MethodEntry], images: int) -> None:
        """Count a pass of some images through each classifier."""
        row.images_encoded = 0 if row.done else images * len(classifiers)
        row.seconds = 0.0 if row.done else images * sum(self._forward(m.kind, m.config) for m in classifiers)


class _Clock:
    """Seconds for an image, of each different model, from one batch; each is timed once."""

    def __init__(self, manifest: Manifest, announce: Callable[[str], None]) -> None:
        labelled = np.flatnonzero([label is not None for label in manifest.column("label")])
        self._sample = manifest.take(
            labelled[np.linspace(0, len(labelled) - 1, min(_SAMPLE, len(labelled))).astype(int)]
        )
        self._announce, self._known = announce, dict[tuple[Any, ...], float]()

    def forward(self, config: Any, *, is_dual: bool) -> float:
        """Of a forward pass, with decoding.

        Args:
            config: settings with `model`, `geometry`, `precision` and `classes`.
            is_dual: the vision tower of a dual encoder; else a network with a class head.
        """

        def load() -> tuple[Preprocess, Callable[[Any], object]]:
            if is_dual:
                encoder = _encoder(config)
                return encoder.preprocess, encoder.encode_greys
            from thoraclip.models.backbones import load_backbone

            labels = self._sample.label_set(config.classes)
            network = load_backbone(config.model, labels, geometry=config.geometry, precision=config.precision)
            return network.preprocess, network.look

        return self._timed((config.model, config.geometry, config.precision, is_dual), load)

    def caption(self, config: StudyConfig) -> float:
        """Of captioning."""

        def load() -> tuple[Preprocess, Callable[[Any], object]]:
            from thoraclip.models.captioner import load_captioner

            captioner = load_captioner(config.caption_model, geometry=config.geometry, precision=config.precision)
            return captioner.preprocess, captioner.caption

        return self._timed((config.caption_model, "captions"), load)

    def inspect(self) -> float:
        """Of reading a file and measuring its appearance."""
        if ("inspect",) not in self._known:
            with tempfile.TemporaryDirectory(prefix="thoraclip-") as folder:
                began = time.perf_counter()
                inspect(self._sample, Path(folder))
                self._known["inspect",] = (time.perf_counter() - began) / len(self._sample)
        return self._known["inspect",]

    def _timed(self, key: tuple[Any, ...], load: Callable[[], tuple[Preprocess, Callable[[Any], object]]]) -> float:
        if key not in self._known:
            self._announce(f"timing {key[0]}")
            spec, work = load()
            greys = decoded(self._sample.root, self._sample.table, spec)(range(1))
            work(greys)  # the first call of a network takes longer
            began = time.perf_counter()
            work(decoded(self._sample.root, self._sample.table, spec)(range(len(self._sample))))
            self._known[key] = (time.perf_counter() - began) / len(self._sample)
        return self._known[key]


def _encoder(config: Any, *, adapter: str = "", adapter_scale: float = 1.0) -> Any:
    return load_encoder(
        EncoderConfig(
            model=config.model,
            geometry=config.geometry,
            precision=config.precision,
            adapter=adapter,
            adapter_scale=adapter_scale,
        )
    )
