"""What a unit of work costs on this machine: the real functions, timed on a few pictures of the manifest.

A slow model sees fewer pictures, so that measuring one takes seconds; what a first call takes once (imports, buffers) is kept
apart. Everything is written into one folder, which the caller throws away.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.batches import pixel_cache
from thoraclip.data.check.inspection import inspect
from thoraclip.data.duplicates import find_duplicates
from thoraclip.data.index import IndexResult, index
from thoraclip.errors import ThoraclipError, first_line
from thoraclip.imaging import Preprocess
from thoraclip.labels import load_prompts
from thoraclip.methods.caption import CaptionConfig
from thoraclip.methods.running import Context
from thoraclip.runs import RunFolder, digest
from thoraclip.study.estimate import Law, Measured
from thoraclip.study.reporting import REPORTING, reporting_law
from thoraclip.study.settings import StudyConfig
from thoraclip.study.tasks import Unit
from thoraclip.study.timing import few_pictures, in_parts, machine_facts, memory_mb, peak_memory, seconds_of
from thoraclip.study.trainings import TRAINING, training_laws
from thoraclip.tables.arrays import ArrayWriter
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint
from thoraclip.tables.manifest import Manifest

__all__ = ["Bench"]

Greys = npt.NDArray[np.uint8]

_PICTURES, _PICTURES_CUDA = 192, 1024
"""Looked at most; a device that is fast in large batches alone needs more."""
_FEWEST = 48
"""Pictures that an encoder sees at least: a probe is fitted on them."""
_NOISE = 0.5
"""Of drawn features, in standard deviations: on copies without it trees have less to do."""
_FEATURE_BYTES = 24
"""A number of the features while a probe is fitted: as read, of the training rows, standardised in 4 and in 8 bytes, and a copy."""
_NEEDED = {
    "load": ("transformers",), "reload": ("peft",), "fit": ("sklearn.linear_model",), "training": ("accelerate", "sklearn.metrics"),
    "trees": ("sklearn.ensemble",), "judge": ("sklearn.metrics", "jinja2"), "figure": ("matplotlib.figure",),
}  # fmt: skip
"""Unit -> what is imported when the first one is done."""
_UNUSABLE = (ThoraclipError, RuntimeError, OSError, MemoryError)
"""What a model that cannot be loaded, or does not fit into memory, raises."""


class Bench:
    """Measures units, each once.

    Args:
        config: of the study.
        out: its folder; it is only read.
        announce: gets a line for each thing that takes a while.
        start: seconds that the process took before it could measure, which the study will take too.
        patience: seconds that measuring one model's pass, or one training's steps, may take, about.
    """

    def __init__(
        self,
        config: StudyConfig,
        out: Path,
        *,
        announce: Callable[[str], None] = lambda _: None,
        start: float = 0.0,
        patience: float = 5.0,
    ) -> None:
        self.config, self.out, self._announce, self._once = config, out, announce, start
        self.patience = patience
        self._known: dict[Unit, Law | str] = {}
        self._embedded: dict[Any, tuple[Path, Manifest, int]] = {}
        self._looked = 0

    def describe(self, config: Any) -> tuple[dict[str, str], Preprocess]:
        """See `counting.Describe`."""
        encoder = _encoder(config)
        return encoder.description, encoder.preprocess

    def __call__(self, units: Sequence[Unit], manifest: Manifest, folder: Path) -> Measured:
        """Cost of every unit, or why it has none; see `estimate.Measure`."""
        machine = machine_facts(units, self.config.precision)
        if units:
            self.folder, self.manifest = folder, manifest
            self.sample = few_pictures(manifest, _PICTURES_CUDA if machine["device"] == "cuda" else _PICTURES)
            self._import(units)
        for unit in sorted(units, key=_order):
            self._law_or_reason(unit)
        laws = {unit: self._known[unit] for unit in units}
        return Measured(laws, self._once if units else 0.0, machine, self._looked)

    def _law_or_reason(self, unit: Unit) -> Law | str:
        if unit not in self._known:
            try:
                law = self._measure(unit)
                self._known[unit] = law if law.memory_mb else dataclasses.replace(law, memory_mb=memory_mb())
            except _UNUSABLE as error:
                self._known[unit] = str(error) if isinstance(error, ThoraclipError) else first_line(error)
            gc.collect()
        return self._known[unit]

    def law(self, unit: Unit) -> Law:
        """Of a unit that another one builds on."""
        found = self._law_or_reason(unit)
        if isinstance(found, str):
            raise RuntimeError(found)
        return found

    def _measure(self, unit: Unit) -> Law:
        if unit.kind in TRAINING:
            self._say(f"a step of {type(unit.config).__module__.rpartition('.')[2]}", unit.config)
            place = RunFolder(self.folder / "trainings" / str(len(self._known)))
            laws = training_laws(self, unit.config, place)
            self._known |= {dataclasses.replace(unit, kind=kind): law for kind, law in laws.items()}
            return laws[unit.kind]
        if unit.kind in REPORTING:
            return reporting_law(self, unit)
        law: Law = getattr(self, f"_{unit.kind.replace(' ', '_')}")(unit)
        return law

    def _say(self, what: str, config: Any = None) -> None:
        model = f"{config.model}: " if hasattr(config, "model") else ""
        self._announce(f"measuring {model}{what}")

    def _import(self, units: Sequence[Unit]) -> None:
        kinds = {unit.kind for unit in units}
        kinds |= {"training"} if kinds & set(TRAINING) else set()
        began = time.perf_counter()
        for kind in sorted(kinds & set(_NEEDED)):
            for name in _NEEDED[kind]:
                import_module(name)
        self._once += time.perf_counter() - began

    def usual(self, work: Callable[[], object], *, enough: float = 0.3, most: int = 5) -> float:
        """Seconds of a call that is not the first: the median; what the first one took more counts as the start."""
        first = seconds_of(work)
        times: list[float] = []
        while len(times) < most and sum(times) < enough:
            times.append(seconds_of(work))
        usual = float(np.median(times))
        self._once += max(0.0, first - usual)
        return usual

    def _index(self, unit: Unit) -> Law:
        self._say("reading pictures")
        table = self.folder / "some.csv"
        lines = zip(self.sample.column("path"), self.sample.column("label"), strict=True)
        table.write_text("path,label\n" + "".join(f'"{p}","{c}"\n' for p, c in lines), encoding="utf-8")
        found: list[IndexResult] = []

        def read() -> None:
            found.append(index(self.sample.root, layout="csv", csv_file=table, salt=self.folder / "salt"))

        each = self._once_each(read)
        self.sample = few_pictures(found[0].manifest, len(self.sample))  # without those that cannot be read
        return Law(seconds_each=each)

    def _inspect(self, unit: Unit) -> Law:
        self._say("looking at pictures")
        return Law(seconds_each=self._once_each(lambda: inspect(self.sample, self.folder / "inspection")))

    def _duplicates(self, unit: Unit) -> Law:
        seen = inspect(self.sample, self.folder / "inspection")
        names = [f"row {row}" for row in range(len(self.sample))]
        return Law(seconds_each=self._once_each(lambda: find_duplicates(seen.thumbnails, names)))

    def _decode(self, unit: Unit) -> Law:
        self._say("decoding")
        return Law(seconds_each=self._once_each(lambda: self.pictures(unit.about[0])))

    def _once_each(self, work: Callable[[], object]) -> float:
        """Seconds for a picture of the sample; what is read from the disk is read once."""
        self._looked = max(self._looked, len(self.sample))
        return seconds_of(work) / len(self.sample)

    def pictures(self, spec: Preprocess) -> Greys:
        """u8[S, size, size] of the sample, in the folder's own pixel cache."""
        self._looked = max(self._looked, len(self.sample))
        return pixel_cache(self.sample, spec, self.folder / "pixels").pixels

    def _load(self, unit: Unit) -> Law:
        from thoraclip.models.dual_encoder import load_dual_encoder

        config = unit.config
        self._say("loading", config)
        with peak_memory() as peak:
            first = seconds_of(lambda: _encoder(config))
            if first > self.patience:
                return Law(first, memory_mb=peak())
            again = seconds_of(
                lambda: load_dual_encoder(
                    config.model, adapter=config.adapter, adapter_scale=config.adapter_scale, geometry=config.geometry,
                    precision=config.precision,
                )
            )  # fmt: skip
            self._once += max(0.0, first - again)
            return Law(again, memory_mb=peak())

    def _encode(self, unit: Unit) -> Law:
        from thoraclip.methods.embed import usual_batch_size
        from thoraclip.methods.engines import by_threads, cut

        config = unit.config
        self._say("encoding", config)
        encoder = _encoder(config)
        greys = self.pictures(encoder.preprocess)
        size = min(config.batch_size or usual_batch_size(encoder.device), len(greys))
        few = np.array(greys[: min(4, size)])
        usual = self.usual(lambda: encoder.encode_greys(few)) / len(few)
        fewest = max(_FEWEST, 5 * len(self.manifest.label_set()))
        count = int(np.clip(self.patience / usual, min(fewest, len(greys)), len(greys)))
        some = self.sample.take(np.arange(count))
        description, spec = encoder.description, encoder.preprocess.as_dict()
        where = self.folder / "embeddings" / digest([description, spec, size])[:12]
        engine = by_threads(encoder, lambda rows: np.array(greys[rows.start : rows.stop]))
        with peak_memory() as peak:
            writer = ArrayWriter(where, EMBEDDINGS, total=count, token=str(size))
            encoder.encode_greys(np.array(greys[:size]) if count > size else few)  # buffers of this size
            began = time.perf_counter()
            for pooled, projected in engine(cut(count, size)):
                writer.append({"pooled": pooled, "projected": projected})
            each = (time.perf_counter() - began) / count
            memory = peak()
        fingerprint = embeddings_fingerprint(some, description, spec)
        writer.finish(some, facts={"encoder": description, "preprocess": spec}, fingerprint=fingerprint)
        width = pooled.shape[1] + projected.shape[1]
        self._embedded[_same_features(config)] = (where, some, int(pooled.shape[1]))
        return Law(seconds_each=each, memory_mb=memory, memory_each_mb=3 * 4 * width / 1e6)

    def _texts(self, unit: Unit) -> Law:
        prompts, names = unit.about
        encoder, texts = _encoder(unit.config), [load_prompts(prompts).for_class(name) for name in names]
        return Law(self.usual(lambda: [encoder.encode_texts(t) for t in texts], most=2))

    def _load_captioner(self, unit: Unit) -> Law:
        self._say("loading", unit.config)
        began = time.perf_counter()
        self._captioner = _captioner(unit.config)
        return Law(time.perf_counter() - began)

    def _caption(self, unit: Unit) -> Law:
        self.law(Unit("load captioner", unit.config))
        self._say("captioning", unit.config)
        greys = self.pictures(self._captioner.preprocess)
        with peak_memory() as peak:
            one = self.usual(lambda: self._captioner.caption(np.array(greys[:1])), most=1)
            count = int(np.clip(2 * self.patience / one, 1, min(unit.config.batch_size, len(greys))))
            each = seconds_of(lambda: self._captioner.caption(np.array(greys[:count]))) / count
            del self._captioner
            return Law(seconds_each=each, memory_mb=peak())

    def _fit(self, unit: Unit) -> Law:
        """Two samples of features, so that what does not grow with them is told apart."""
        from thoraclip.methods import probe
        from thoraclip.methods.encoders import EncoderConfig

        config = unit.config
        encoder = EncoderConfig(model=config.model, geometry=config.geometry, precision=config.precision)
        if _same_features(encoder) not in self._embedded:
            self.law(Unit("encode", encoder))
        self._say("a probe", config)
        where, some, dimension = self._embedded[_same_features(encoder)]
        config = dataclasses.replace(config, embeddings=str(where))
        _encoder(config)
        points = []
        with peak_memory() as peak:
            half = min(len(some), max(len(some) // 2, 5 * len(some.label_set())))
            for count in (half, len(some)):
                rows = in_parts(some.take(np.arange(count)))
                context = Context(rows, RunFolder(self.folder / "probe"), self.folder / "embeddings")
                trained = rows.column("split").count("train")
                points.append((trained, seconds_of(partial(probe.run, config, context))))
            (few, less), (many, more) = points
            each = float(np.clip((more - less) / max(many - few, 1), 0.5 * more / many, more / many))
            texts = 0.0  # are a task of their own
            if config.solver == "lp++":
                texts = self.law(Unit("texts", encoder, (config.prompts, some.label_set(config.classes).names))).seconds
            return Law(max(0.0, more - each * many - texts), each, peak(), _FEATURE_BYTES * dimension / 1e6)

    def _trees(self, unit: Unit) -> Law:
        """Boosted trees on the sample's features, drawn again with noise until there are as many as in the study."""
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits

        from thoraclip.methods.trivial import trivial_features

        config, (many,) = unit.config, unit.about
        self._say("boosted trees")
        found = trivial_features(self.sample, self.folder / "inspection")
        real = np.concatenate([values for name, values in found.items() if name in config.features], axis=1)
        rng, targets = np.random.default_rng(0), self.sample.targets(self.sample.label_set(config.classes))
        drawn = rng.integers(len(real), size=many)
        table = real[drawn] + real.std(axis=0) * rng.normal(scale=_NOISE, size=(many, real.shape[1]))
        rounds = -(-config.max_iter // 4)

        def fit(count: int) -> None:
            HistGradientBoostingClassifier(
                max_iter=rounds, learning_rate=config.learning_rate, max_leaf_nodes=config.max_leaf_nodes,
                min_samples_leaf=config.min_samples_leaf, early_stopping=False,
            ).fit(table[:count], targets[drawn[:count]])  # fmt: skip

        with threadpool_limits(1):
            less, more = seconds_of(lambda: fit(many // 2)), seconds_of(lambda: fit(many))
        scale = (1.5 if config.refit else 1) * config.max_iter / rounds  # the second fit has fewer rounds, say half
        each = scale * max(0.0, more - less) / (many - many // 2)
        return Law(max(0.0, scale * more - each * many), each)


def _encoder(config: Any) -> Any:
    from thoraclip.methods.embed import load_encoder

    return load_encoder(config)


def _captioner(config: CaptionConfig) -> Any:
    from thoraclip.models.captioner import load_captioner

    return load_captioner(config.model, geometry=config.geometry, precision=config.precision)


def _same_features(config: Any) -> tuple[str, str, str]:
    return config.model, config.geometry, config.precision


def _order(unit: Unit) -> tuple[Any, ...]:
    """Reading before networks, one network after the other, and what builds on features behind them."""
    kinds = ("index", "inspect", "duplicates", "decode", "load", "encode", "texts", "fit")
    config = unit.config
    settings = tuple(str(getattr(config, name, "")) for name in ("model", "geometry", "precision", "adapter"))
    rank = kinds.index(unit.kind) if unit.kind in kinds else len(kinds)
    return (0 if rank < 4 else 1 if config is not None else 2), settings, rank, unit.kind
