"""What a study has to do, counted: every run as tasks with their sizes; what is there already is left out.

The events are followed in the order of `run_study`: who comes first decodes the pictures, embeds them and loads the model;
whoever comes after finds them. Nothing is opened but the manifest, the models' settings and the notes beside what is cached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thoraclip.data.layouts import detect_layout, find_layout
from thoraclip.data.splits import split_folds
from thoraclip.errors import InputError
from thoraclip.imaging import Preprocess
from thoraclip.judge.compare import resamples_needed
from thoraclip.labels import LabelSet, load_prompts
from thoraclip.methods import find_method
from thoraclip.methods.caption import CaptionConfig
from thoraclip.methods.running import Part, parts, require_folds
from thoraclip.runs import digest
from thoraclip.study.settings import CAPTIONS, MethodEntry, StudyConfig
from thoraclip.study.tasks import Task, Unit, Work, training_unit
from thoraclip.tables.arrays import is_valid
from thoraclip.tables.captions import read_captions
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.pixels import PIXELS, geometry_of, pixels_fingerprint

__all__ = ["Counting", "Describe", "expected_images"]

Describe = Callable[[Any], tuple[dict[str, str], Preprocess]]
"""EncoderConfig -> what identifies the encoder's features, and how it wants its pictures; loads the encoder."""

_MOST_FOR_TREES, _MOST_TO_RESAMPLE = 2000, 4000
"""Images on which these are measured at most; above them the cost grows with the images."""
_CARD_RESAMPLES = 1000
_SCORING_BATCH = 64


def expected_images(config: StudyConfig, given: Manifest | None) -> tuple[Manifest, bool]:
    """(the images as the study will split them, whether they have parts of their own), before any picture is looked at.

    Args:
        config: of the study.
        given: its manifest; `None` where a folder is to be indexed: its files are listed.
    """
    if given is None:
        root = Path(config.folder)
        rows = find_layout(config.layout or detect_layout(root))(root).rows
        if not rows:
            raise InputError(f"{root}: no picture can be used; give every class a sub-folder of its own")
        given = Manifest.from_rows(sorted(rows, key=lambda row: str(row["image_id"])), root.resolve(), may_leak=True)
    if any(part is not None for part in given.parts()):
        return given, True
    return split_folds(given, folds=config.folds, seed=config.seeds[0]), False


@dataclass(frozen=True)
class _Adapter:
    """Which weights are added to an encoder.

    Args:
        folder: where they are, or will be; empty for none.
        training: the unit that will train them; `None` where they are there.
        like: folder of one that takes as long to load: one measurement serves all adapters of a run.
    """

    folder: str = ""
    training: Unit | None = None
    like: str = ""


class Counting:
    """The tasks of all runs, in their order; it remembers what the runs before have left.

    Args:
        config: of the study.
        manifest: the images, split.
        out: the study folder; it is only read.
        describe: called for encoders whose embeddings may be on disk.
    """

    def __init__(self, config: StudyConfig, manifest: Manifest, out: Path, describe: Describe) -> None:
        self._config, self.manifest, self._out, self._describe = config, manifest, out, describe
        self._pixels: dict[str, str] = {}  # what there is by now, and whether it is `cached` or `shared`
        self._embedded: dict[tuple[Any, ...], str] = {}
        self._loaded: tuple[Any, ...] | None = None
        self._inspected = (out / "inspection" / "inspection.json").is_file()
        self._trained: dict[str, dict[int | None, _Adapter]] = {}
        self._parts: dict[tuple[Any, ...], list[Part]] = {}
        self._specs: dict[tuple[str, str], Preprocess] = {}
        self._work = Work("", "")

    def prepare(self, *, has_parts: bool) -> Work:
        """Indexing, and looking for copies where the study makes its own folds.

        Args:
            has_parts: they are made already, or are the images' own.
        """
        work, n = self._begin(Work("prepare", "stage")), len(self.manifest)
        if self._config.folder and not (self._out / "manifest.facts.jsonl").is_file():
            work.tasks.append(Task(Unit("index"), size=n))
        if not has_parts and self._config.group_duplicates:
            work.tasks += [*self.inspect_once(), Task(Unit("duplicates"), size=n)]
        return work

    def captions(self) -> Work:
        """The captions that the study writes for its own methods."""
        config, file = self._config, self._out / CAPTIONS
        work = self._begin(Work("captions", "stage"))
        if config.captioner != "blip":
            return work
        given = CaptionConfig(model=config.caption_model, geometry=config.geometry, precision=config.precision)
        if file.is_file() and self._are_captions(file, given):
            work.done, work.cached = True, ["captions"]
            return work
        work.tasks += self._decode(self._spec(given.model, given.geometry))
        n = len(self.manifest)
        work.tasks += [Task(Unit("load captioner", given)), Task(Unit("caption", given), n, encoded=n, what="caption")]
        return work

    def _are_captions(self, file: Path, config: CaptionConfig) -> bool:
        found = read_captions(file)
        made_by = found.origin.get("model") in (config.model, Path(config.model).name)
        same = list(zip(found.image_id, found.sha256, strict=True))
        pictures = list(zip(self.manifest.column("image_id"), self.manifest.column("sha256"), strict=True))
        return made_by and same == pictures

    def judge(self, methods: Sequence[MethodEntry]) -> Work:
        """Resampling, and the figures of the report.

        Args:
            methods: those that can run.
        """
        work = self._begin(Work("judge", "stage"))
        if not methods:
            return work
        classes = len(self.manifest.label_set())
        tables, entries = 1 + sum(max(1, len(m.seeds)) for m in methods), len(methods) + 1
        judged, enough = max(len(self._judged(m.config)) for m in methods), resamples_needed(entries)
        some = (min(judged, _MOST_TO_RESAMPLE),)
        work.tasks = [
            Task(Unit("judge"), times=len(methods)),
            # beside its metrics, calibration and the answers given when sure of every method, as dear as two tables more
            Task(Unit("resample", about=some), size=(tables + 2 * len(methods)) * judged * self._config.resamples),
            Task(Unit("compare"), size=max(enough, self._config.resamples), times=entries * (entries - 1) // 2),
            Task(Unit("figure"), times=2 + classes + 2 * len(methods)),
        ]
        if enough > self._config.resamples:
            work.tasks.append(Task(Unit("resample answers", about=some), size=tables * judged * enough))
        return work

    def _judged(self, config: Any) -> list[int]:
        """Rows that a method's scores are judged on."""
        only, columns = config.only_folds, ("split", "fold", "label")
        return [
            row
            for row, (split, fold, label) in enumerate(zip(*map(self.manifest.column, columns), strict=True))
            if label is not None and (split == "test" if fold is None else not only or fold in only)
        ]

    def judged_by(self, config: Any) -> int:
        """Number of images that a method's scores are judged on."""
        return len(self._judged(config))

    def run(self, method: MethodEntry, seed: int | None, config: Any, folder: Path, *, done: bool) -> Work:
        """The tasks of one run.

        Raises:
            ThoraclipError: it cannot run.
        """
        work = self._begin(Work(method.name, method.kind, seed, done=done))
        if done:
            work.cached = ["run"]
            return work
        count = {
            "zeroshot": self._zeroshot, "probe": self._probe, "finetune": self._finetune, "baseline": self._baseline,
            "trivial": self._trivial,
        }.get(method.kind)  # fmt: skip
        if count is None:
            work.error = f"what {method.kind} costs is not known"
            return work
        work.tasks += [*count(config, folder), Task(Unit("files"))]
        if find_method(method.kind).is_trained:  # its card is judged too
            judged = len(self._judged(config))
            resample = Unit("resample", about=(min(judged, _MOST_TO_RESAMPLE),))
            work.tasks += [
                Task(Unit("card")), Task(Unit("judge")), Task(resample, size=3 * judged * _CARD_RESAMPLES)
            ]  # fmt: skip
        return work

    def _begin(self, work: Work) -> Work:
        self._work = work
        return work

    def _note(self, what: str, where: str) -> None:
        found: list[str] = getattr(self._work, where)
        if what not in found:
            found.append(what)

    def _zeroshot(self, config: Any, folder: Path) -> Iterator[Task]:
        adapters, labels = self._adapters(config), self.manifest.label_set(config.classes)
        folds = sorted({fold for fold in self.manifest.column("fold") if fold is not None})
        require_folds(config.only_folds, folds)
        wanted = [fold for fold in folds if not config.only_folds or fold in config.only_folds]
        for fold in [None] if None in adapters else wanted or [None]:
            yield from self._load(config, _adapter_for(config, adapters, fold))
            yield from self._embed(config, _adapter_for(config, adapters, fold))
            yield self._texts(config, config.prompts, labels)

    def _probe(self, config: Any, folder: Path) -> Iterator[Task]:
        adapters, labels = self._adapters(config), self.manifest.label_set(config.classes)
        fit = dataclasses.replace(
            config, seed=0, adapter="", embeddings="", only_folds=(), batch_size=_SCORING_BATCH, val_fraction=0.2
        )
        for part in self._parts_of(config):
            adapter = _adapter_for(config, adapters, part.fold)
            yield from self._load(config, adapter)
            yield from self._embed(config, adapter)
            if config.solver == "lp++":
                yield self._texts(config, config.prompts, labels)
            yield Task(Unit("fit", fit), size=len(part.train))

    def _finetune(self, config: Any, folder: Path) -> Iterator[Task]:
        from thoraclip.methods.encoders import EncoderConfig
        from thoraclip.methods.probe import Config as ProbeConfig

        labels, training = self.manifest.label_set(config.classes), training_unit(config)
        encoder = EncoderConfig(model=config.model, geometry=config.geometry, precision=config.precision)
        kept: dict[int | None, _Adapter] = {}
        chosen_by = ProbeConfig(
            model=config.model, geometry=config.geometry, precision=config.precision, l2_min=0.01, l2_max=1.0, l2_steps=3
        )  # fmt: skip
        for part in self._parts_of(config):
            if config.captions and config.captions != str(self._out / CAPTIONS):
                read_captions(Path(config.captions)).rows_for(self.manifest, part.train)  # says what is missing
            yield from self._train(config, training, part, folder)
            if config.select == "probe":  # which encodes both parts once more
                validations, both = self._length(config, part)[1], len(part.train) + len(part.val)
                seen = validations * both
                yield Task(dataclasses.replace(training, kind="validate"), both, validations, seen, what="validate")
                yield Task(Unit("fit", chosen_by), size=len(part.train), times=validations)
            place = folder / ("" if part.fold is None else f"fold-{part.fold}") / "adapter"
            kept[part.fold] = _Adapter(str(place), training)
            yield from self._load(encoder, kept[part.fold])
            yield from self._embed(encoder, kept[part.fold])
            yield self._texts(encoder, config.prompts, labels)
        self._trained[str(folder)] = kept

    def _baseline(self, config: Any, folder: Path) -> Iterator[Task]:
        training = training_unit(config)
        for part in self._parts_of(config):
            yield from self._train(config, training, part, folder)
            yield Task(dataclasses.replace(training, kind="reload"))
            scoring = dataclasses.replace(training, kind="validate")
            scored = len(part.test) + len(part.val)
            yield Task(scoring, scored, encoded=scored, what="score")

    def _trivial(self, config: Any, folder: Path) -> Iterator[Task]:
        yield from self.inspect_once()
        cost = dataclasses.replace(config, seed=0, only_folds=(), class_weight="none", val_fraction=0.2)
        found = self._parts_of(config)
        measured_on = min(_MOST_FOR_TREES, max(len(part.train) for part in found))
        yield from (Task(Unit("trees", cost, (measured_on,)), size=len(part.train)) for part in found)

    def _train(self, config: Any, training: Unit, part: Part, folder: Path) -> Iterator[Task]:
        """What all trainings share: preparing, steps, validations, keeping."""
        steps, validations = self._length(config, part)

        def of(kind: str) -> Unit:
            return dataclasses.replace(training, kind=kind)

        yield Task(of("prepare"))
        yield from self._decode(self._spec(config.model, config.geometry), own=folder)
        val, images = len(part.val), steps * config.batch_size
        yield Task(of("validate"), val, validations, encoded=validations * val, what="validate")
        yield Task(of("step"), config.batch_size, steps, trained=images, what="train")
        yield Task(of("keep"))

    def _length(self, config: Any, part: Part) -> tuple[int, int]:
        """(steps, validations) of a training that does not stop early."""
        from thoraclip.methods.training import Sampler

        targets = self.manifest.targets(self.manifest.label_set(config.classes))
        sampler = Sampler(
            part.train, targets[part.train], total=len(targets), batch_size=config.batch_size, sampling=config.sampling,
            seed=config.seed,
        )  # fmt: skip
        steps = config.steps or config.epochs * sampler.steps_per_epoch
        return steps, 1 + -(-steps // (config.validate_every or sampler.steps_per_epoch))

    def _parts_of(self, config: Any) -> list[Part]:
        key = (config.classes, config.val_fraction, config.seed, config.only_folds)
        if key not in self._parts:
            labels = self.manifest.label_set(config.classes)
            found = parts(self.manifest, labels, val_fraction=key[1], seed=key[2], only=key[3])
            self._parts[key] = list(found)
        return self._parts[key]

    def _spec(self, model: str, geometry: str) -> Preprocess:
        from thoraclip.models.checkpoint import find_checkpoint, read_preprocess

        if (model, geometry) not in self._specs:
            self._specs[model, geometry] = read_preprocess(find_checkpoint(model), geometry=geometry)
        return self._specs[model, geometry]

    def _decode(self, spec: Preprocess, *, own: Path | None = None) -> list[Task]:
        """Making the pixel cache, where it is not there yet.

        Args:
            spec: of the pictures.
            own: run folder whose own cache is used where the study keeps none; `None`: then every pass decodes.
        """
        shared = self._config.pixel_cache
        key = digest([geometry_of(spec), "" if shared else str(own)])
        fingerprint = pixels_fingerprint(self.manifest, spec)
        root = self._out / "pixels" if shared else own / "pixels" if own else None
        if root and key not in self._pixels:
            folder = root / f"{spec.geometry}-{spec.size}-{fingerprint[:12]}"
            self._pixels |= {key: "cached"} if is_valid(folder, PIXELS, fingerprint) else {}
        if key in self._pixels:
            self._note("pixels", self._pixels[key])
            return []
        if root:
            self._pixels[key] = "shared"
        plain = dataclasses.replace(spec, mean=(0.5,) * 3, std=(0.5,) * 3)  # come later, at the model's door
        return [Task(Unit("decode", about=(plain,)), size=len(self.manifest))]

    def inspect_once(self) -> list[Task]:
        """Measuring every picture's appearance, once in a study."""
        tasks = [] if self._inspected else [Task(Unit("inspect"), size=len(self.manifest))]
        self._inspected = True
        return tasks

    def _adapters(self, config: Any) -> dict[int | None, _Adapter]:
        """Held-out fold -> adapter: that of an earlier run of this study, of the disk, or none."""
        from thoraclip.methods.adapters import with_adapter
        from thoraclip.models.adapter_note import adapter_folders

        if not config.adapter:
            return {None: _Adapter()}
        if config.adapter in self._trained:
            return self._trained[config.adapter]
        found = adapter_folders(Path(config.adapter))
        if not found:
            with_adapter(config, None)  # says what is missing
        first = str(next(iter(found.values()), ""))
        return {fold: _Adapter(str(folder), like=first) for fold, folder in found.items()}

    def _load(self, config: Any, adapter: _Adapter) -> list[Task]:
        """The encoder, where the last one that was loaded is another one."""
        key = (*_encoder_key(config, adapter), config.precision)
        if key == self._loaded:
            return []
        self._loaded = key
        if adapter.training:
            return [Task(dataclasses.replace(adapter.training, kind="reload"))]
        return [Task(Unit("load", _encoder_config(config, _Adapter(adapter.like))))]

    def _embed(self, config: Any, adapter: _Adapter) -> list[Task]:
        """One pass over all images, where their embeddings are not there yet."""
        if getattr(config, "embeddings", ""):
            self._note("embeddings", "cached")
            return []
        key = _encoder_key(config, adapter)
        if key not in self._embedded and self._is_embedded(config, adapter):
            self._embedded[key] = "cached"
        if key in self._embedded:
            self._note("embeddings", self._embedded[key])
            return []
        self._embedded[key] = "shared"
        n, encoder = len(self.manifest), _encoder_config(config, batch_size=config.batch_size)
        decode = self._decode(self._spec(config.model, config.geometry))
        return [*decode, Task(Unit("encode", encoder), size=n, encoded=n, what="embed")]

    def _is_embedded(self, config: Any, adapter: _Adapter) -> bool:
        """True where a valid pass of this encoder over these images lies in the study's cache."""
        cache = self._out / "embeddings"
        if adapter.training or not any(cache.glob("*/embeddings.json")):
            return False
        description, spec = self._describe(_encoder_config(config, adapter))
        fingerprint = embeddings_fingerprint(self.manifest, description, spec.as_dict())
        return is_valid(cache / digest([description, spec.as_dict()])[:12], EMBEDDINGS, fingerprint)

    def _texts(self, config: Any, prompts: str, labels: LabelSet) -> Task:
        for name in labels.names:
            load_prompts(prompts).for_class(name)  # says what is missing
        return Task(Unit("texts", _encoder_config(config), (prompts, labels.names)))


def _encoder_config(config: Any, adapter: _Adapter = _Adapter(), *, batch_size: int = _SCORING_BATCH) -> Any:
    """The part of a method's settings that tells the encoder."""
    from thoraclip.methods.encoders import EncoderConfig

    scale = config.adapter_scale if adapter.folder else 1.0
    return EncoderConfig(
        model=config.model, geometry=config.geometry, precision=config.precision, adapter=adapter.folder,
        adapter_scale=scale, batch_size=batch_size,
    )  # fmt: skip


def _encoder_key(config: Any, adapter: _Adapter) -> tuple[Any, ...]:
    from thoraclip.models.dual_encoder import resolve_device, resolve_precision

    precision = resolve_precision(config.precision, resolve_device(""))
    scale = config.adapter_scale if adapter.folder else 1.0
    return config.model, config.geometry, precision, adapter.folder, scale


def _adapter_for(config: Any, adapters: Mapping[int | None, _Adapter], fold: int | None) -> _Adapter:
    found = adapters.get(None, adapters.get(fold))
    if found is None:
        where = "this split" if fold is None else f"fold {fold}"
        raise InputError(f"adapter '{config.adapter}': no adapter for {where}; name the run folder of a training on it")
    return found
