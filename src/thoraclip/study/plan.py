"""What `thoraclip study --dry-run` prints: what will run, on how many images, what is there already, and a rough time.

    settings -> manifest -> a row for each run and each stage: images encoded, images trained, what is cached
    one timed batch for each different model -> seconds of each row

Nothing is written but into a temporary folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thoraclip.data.splits import split_folds
from thoraclip.dtypes import Ints
from thoraclip.errors import InputError, ThoraclipError, first_line
from thoraclip.methods import find_method
from thoraclip.methods.audit import audit_passes
from thoraclip.methods.caption import CAPTIONERS
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.methods.parts import Part, parts_of, require_folds
from thoraclip.methods.running import is_done
from thoraclip.methods.sources import sources_of
from thoraclip.methods.tokens import cache_size, cached_views, frozen_prefix
from thoraclip.methods.training.folds import sampler_of
from thoraclip.models.files import adapter_folders
from thoraclip.runs import fold_folder, require_room
from thoraclip.study.adaptation import adaptation_seconds
from thoraclip.study.checking import check_study
from thoraclip.study.external import listed_count
from thoraclip.study.few_shot import FewShotEntry, few_shot_entries
from thoraclip.study.settings import CAPTIONS, MethodEntry, StudyConfig, study_notes
from thoraclip.study.timing import Timing, encoder_of
from thoraclip.tables.arrays import is_valid
from thoraclip.tables.captions import read_captions
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint, embeddings_folder
from thoraclip.tables.manifest import Manifest, read_manifest

__all__ = ["plan_study"]

_FACTOR = 3
"""The true time lies within this factor of the estimate, if the machine does nothing else and no training stops
early."""
_SCHEMA = 2
_RUN_SECONDS = 2.0
"""Of a run beside its images: loading, fitting, small files."""
_RESAMPLE_SECONDS = 6e-8
"""For each image in each resample of the report; on a core of 2.5 GHz."""


@dataclass
class Row:
    """One run, or one stage of the study, as docs/index.md says; `seconds` are `None` where they are not known."""

    name: str
    kind: str = "stage"
    seed: int | None = None
    done: bool = False
    images_encoded: int = 0
    images_trained: int = 0
    seconds: float | None = 0.0
    cached: list[str] = field(default_factory=list)
    token_bytes: int = 0  # of the tokens behind frozen blocks, on disk while it runs
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
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """What `run_study` would do, without doing it.

    Args:
        config, methods: from `read_study`.
        out: the study folder; it is only read.
        announce: gets a line for each model that is timed.

    Returns:
        See docs/index.md. A run that would fail while the others run has no time, and says why under `error`.

    Raises:
        ThoraclipError: what would stop the study, see `checking.check_study`.
    """
    listed, rows, failed = check_study(config, methods, out), list[Row](), set[str]()
    entries = [*methods, *few_shot_entries(config, methods)]
    planner = _Planner(config, *_split_manifest(config, listed, out), out, announce)
    planner.followed = {entry.after.name for entry in entries if entry.after}
    for method in entries:
        for seed, settings, folder in method.runs(out):
            rows.append(row := Row(method.name, method.kind, seed))
            with _errors_of(row):
                if method.after and method.after.name in failed:
                    raise InputError(f"its adapters are those of '{method.after.name}', which failed")
                planner.run(row, method, settings, folder)
            failed |= {method.name} if row.error else set()
    is_finished = (out / "report.json").is_file() and all(row.done for row in rows)
    able = [method for method in methods if method.name not in failed]
    stages = list(planner.stages(able, is_finished=is_finished))
    every = [*rows, *stages]
    return {
        "schema": _SCHEMA,
        "source": config.manifest or config.folder,
        "images": len(planner.manifest),
        "runs": [dataclasses.asdict(row) for row in rows],
        "stages": [dataclasses.asdict(row) for row in stages],
        "notes": study_notes(config, methods, planner.manifest),
        "totals": {
            "images_encoded": sum(row.images_encoded for row in every),
            "images_trained": sum(row.images_trained for row in every),
            "seconds": round(sum(row.seconds or 0.0 for row in every), 1),
            "factor": _FACTOR,
            "complete": all(row.seconds is not None for row in every),
        },
    }


def _split_manifest(config: StudyConfig, listed: Manifest, out: Path) -> tuple[Manifest, bool]:
    """(the images as the study will split them, before any is decoded; whether it has to make the split)."""
    file, is_split = out / "manifest.parquet", any(listed.parts())
    if file.is_file() and not (config.manifest and is_split):
        kept = read_manifest(file)
        is_same = kept.content_fingerprint == listed.content_fingerprint
        if not config.manifest or (is_same and kept.column("label") == listed.column("label")):
            return kept, False
    return (listed, False) if is_split else (split_folds(listed, folds=config.folds, seed=config.seeds[0]), True)


class _Planner:
    """Fills rows in the order in which the study works, and remembers what earlier rows leave behind."""

    def __init__(
        self, config: StudyConfig, manifest: Manifest, is_split_here: bool, out: Path, announce: Callable[[str], None]
    ) -> None:
        self.config, self.manifest, self.is_split_here, self.out = config, manifest, is_split_here, out
        self.folds = sorted(set(manifest.column("fold")) - {None})
        self._networks = dict[Hashable, MethodEntry]()  # every different one that the runs keep
        self._embedded = set[EncoderConfig]()
        self.followed = set[str]()  # methods whose adapters later ones use, with the features of all images
        self._timing = Timing(manifest, announce)

    def run(self, row: Row, entry: MethodEntry, config: Any, folder: Path) -> None:
        """Count one run; raises ThoraclipError where it cannot run."""
        method, held_out = find_method(row.kind), self._held_out(config)
        encoders = self._encoders(row.kind, config, folder) if method.embeds else {}
        row.done = is_done(row.kind, config, self.manifest, folder)
        if row.done:
            row.cached = ["run"]
        else:
            self._count(row, config, encoders)
        if method.keeps_classifier and not isinstance(entry, FewShotEntry):
            self._networks |= dict.fromkeys(encoders or [(folder, fold) for fold in held_out], entry)

    def _count(self, row: Row, config: Any, encoders: Mapping[EncoderConfig, bool]) -> None:
        method, labels, trainings = find_method(row.kind), self.manifest.label_set(config.classes), list[Part]()
        if method.trains_network or method.fit_seconds:
            trainings = list(parts_of(config, self.manifest, labels))
        if getattr(config, "captions", "") not in ("", str(self.out / CAPTIONS)):
            captions = read_captions(Path(config.captions))
            for part in trainings:
                captions.rows_for(self.manifest, part.train)  # says what is missing
        targets = self.manifest.targets(labels)
        for part in trainings if method.trains_network else ():
            self._count_training(row, config, part, targets)
        share = self._count_tokens(row, config, trainings[0], targets) if method.trains_adapters else 1.0
        scores_alone = method.trains_adapters and row.name not in self.followed
        for number, (encoder, is_there) in enumerate(encoders.items()):
            if encoder not in self._embedded:
                if getattr(config, "embeddings", "") or (is_there and self._is_embedded(encoder)):
                    row.cached = ["embeddings"]
                elif scores_alone:
                    row.images_encoded += len(trainings[number].test) + len(trainings[number].val)
                    continue
                else:
                    row.images_encoded += len(self.manifest)
                self._embedded.add(encoder)
        row.seconds = _RUN_SECONDS + method.fit_seconds * sum(len(part.train) for part in trainings)
        if row.images_encoded or row.images_trained:
            # a backward pass is two forward ones; with a gradient cache every image goes forward once more
            passes = 4 if method.trains_network and config.batch_size > config.chunk_size else 3
            row.seconds += (passes * share * row.images_trained + row.images_encoded) * self._timing.image(
                row.kind, config
            )

    def _count_training(self, row: Row, config: Any, part: Part, targets: Ints) -> None:
        """The steps, the validations and, where no features are kept, the scoring of one part."""
        sampler, size = sampler_of(config, part, targets, sources_of(config, self.manifest)), config.batch_size
        steps = config.steps or config.epochs * sampler.steps_per_epoch
        validations = 1 + -(-steps // (config.validate_every or sampler.steps_per_epoch))
        row.images_trained += steps * min(size, len(part.train) if config.shots != "all" else size)
        row.images_encoded += validations * len(part.val)
        if not find_method(row.kind).embeds:
            row.images_encoded += len(part.test) + len(part.val)
        if getattr(config, "select", "") == "probe":  # each validation encodes both parts
            row.images_encoded += validations * (len(part.train) + len(part.val))

    def _count_tokens(self, row: Row, config: Any, part: Part, targets: Ints) -> float:
        """The tokens behind frozen blocks that the first training keeps; the share of the blocks that others compute.

        Raises:
            InputError: the disk has no room for them.
        """
        if not config.lora_blocks:
            return 1.0
        encoder = load_encoder(encoder_of(config))
        prefix = frozen_prefix(config, encoder)
        if prefix is None:
            return 1.0
        views = cached_views(config, targets, part)
        row.token_bytes, _ = cache_size(encoder, prefix, views)
        row.images_encoded += sum(map(len, views.values()))
        place = next(folder for folder in (self.out.resolve(), *self.out.resolve().parents) if folder.exists())
        require_room(place, row.token_bytes, "the cache of tokens", "lower prefix_views, or set it to 0")
        return 1 - prefix.count / len(prefix.blocks)

    def _held_out(self, config: Any) -> Sequence[int | None]:
        require_folds(config.only_folds, self.folds)
        return list(config.only_folds or self.folds) or [None]

    def _encoders(self, kind: str, config: Any, folder: Path) -> dict[EncoderConfig, bool]:
        """Encoder that reads all images -> whether its adapter is there: one, or one a fold."""
        is_own, held_out = find_method(kind).trains_network, self._held_out(config)
        if not is_own and not config.adapter:
            return {encoder_of(config): True}
        source = Path(folder if is_own else config.adapter)
        kept = adapter_folders(source)
        if None in kept:
            return {encoder_of(config, kept[None]): True}
        return {encoder_of(config, kept.get(fold, fold_folder(source, fold))): fold in kept for fold in held_out}

    def _is_embedded(self, config: EncoderConfig) -> bool:
        """True where the study's cache has these features; loads the encoder where there is any cache."""
        if not any((self.out / "embeddings").glob("*/embeddings.json")):
            return False
        encoder = load_encoder(config)
        spec = encoder.preprocess.as_dict()
        fingerprint = embeddings_fingerprint(self.manifest, encoder.description, spec)
        return is_valid(embeddings_folder(self.out / "embeddings", encoder.description, spec), EMBEDDINGS, fingerprint)

    def stages(self, methods: Sequence[MethodEntry], *, is_finished: bool) -> Iterator[Row]:
        """What is done beside the runs, of the methods that can run; `is_finished`: their report is there."""
        config, n = self.config, len(self.manifest)
        passes = int(bool(config.folder) and not (self.out / "manifest.facts.jsonl").is_file())
        if not (self.out / "inspection" / "inspection.json").is_file():
            looks_for_copies = config.group_duplicates and self.is_split_here
            passes += looks_for_copies or any(find_method(method.kind).inspects for method in methods)
        yield Row("prepare", done=not passes, seconds=passes * n * self._timing.inspection() if passes else 0.0)
        reads_images = bool(config.captioner) and CAPTIONERS[config.captioner].reads_images
        if reads_images and any(method.has_own_captions for method in methods):
            file, row = self.out / CAPTIONS, Row("captions")
            row.done = file.is_file() and list(read_captions(file).image_id) == self.manifest.column("image_id")
            with _errors_of(row):
                if not row.done:
                    row.images_encoded, captioner = n, dataclasses.replace(config, model=config.caption_model)
                    row.seconds = n * self._timing.image("captions", captioner)
            yield row
        for external in config.external:
            row = Row(f"external {external.name}")
            with _errors_of(row):
                row.done = is_finished and (self.out / "external" / external.name).is_dir()
                images = listed_count(external, self.manifest, self.manifest.label_set(config.classes))
                self._scoring(row, list(self._networks.values()), images)
                if not row.done and row.seconds is not None:
                    row.seconds += n * adaptation_seconds(config, external, methods)
            yield row
        audited = [method for method in methods if find_method(method.kind).keeps_classifier]
        if config.audit != "all":
            audited = audited[-1:] if config.audit == "best" else []  # the last one stands for the best
        if audited:
            row = Row("audit", done=is_finished and (self.out / "audits").is_dir())
            with _errors_of(row):
                labels = self.manifest.label_set(config.classes)
                self._scoring(row, audited, audit_passes(self.manifest, labels, config.audit_images))
            yield row
        tables = sum(3 + len(method.seeds) for method in (*methods, *few_shot_entries(config, methods)))
        seconds = 0.0 if is_finished else tables * n * config.resamples * _RESAMPLE_SECONDS + _RUN_SECONDS
        yield Row("report", done=is_finished, seconds=seconds)

    def _scoring(self, row: Row, classifiers: Sequence[MethodEntry], images: int) -> None:
        """Count a pass of some images through each classifier."""
        if not row.done:
            row.images_encoded = images * len(classifiers)
            row.seconds = images * sum(self._timing.image(method.kind, method.config) for method in classifiers)
