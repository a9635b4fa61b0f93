"""What a training costs on this machine: a real round is prepared on a few pictures, and steps of two sizes are timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thoraclip.methods.caption import CaptionConfig, caption
from thoraclip.methods.running import Context, Part
from thoraclip.runs import RunFolder
from thoraclip.study.estimate import Law
from thoraclip.study.settings import CAPTIONS
from thoraclip.study.tasks import Unit
from thoraclip.study.timing import in_parts, memory_mb, peak_memory, seconds_of
from thoraclip.tables.captions import Captions, read_captions, write_captions

if TYPE_CHECKING:
    from thoraclip.study.measuring import Bench

__all__ = ["TRAINING", "training_laws"]

Rows = npt.NDArray[np.int64]

TRAINING = ("prepare", "step", "validate", "keep", "reload")
"""The units of a training; they are measured together."""
_ROWS: list[dict[str, Any]] = [{"step": 1, "loss": 1.0, "learning_rate": 0.1}, {"step": 1, "val_macro_f1": 0.5}]
_FIRST = 4
"""Images of the very first step, which tells how many the others can have."""


def training_laws(bench: Bench, config: Any, folder: RunFolder) -> Mapping[str, Law]:
    """Cost of each of `TRAINING`.

    Args:
        bench: whose pictures are trained on.
        config: of a fine-tuning or a baseline, with one chunk a batch, or two.
        folder: what is trained is written there.
    """
    from thoraclip.methods.finetune import Config as FinetuneConfig
    from thoraclip.methods.processes import ProcessGroup

    with ProcessGroup(folder=folder.path) as group:
        if isinstance(config, FinetuneConfig):
            return _tuning(bench, config, folder, group)
        return _baseline(bench, config, folder, group)


def _tuning(bench: Bench, config: Any, folder: RunFolder, group: Any) -> Mapping[str, Law]:
    from thoraclip.methods.encoders import EncoderConfig
    from thoraclip.methods.tuning import TuningRound
    from thoraclip.models.dual_encoder import load_dual_encoder

    frozen = EncoderConfig(model=config.model, geometry=config.geometry, precision=config.precision)
    labels, each = bench.sample.label_set(config.classes), bench.law(Unit("encode", frozen)).seconds_each
    texts = bench.law(Unit("texts", frozen, (config.prompts, labels.names))).seconds
    train, val = _parts(bench)
    val = val[: max(_FIRST, int(0.4 * bench.patience / each))]
    # forward and backward are three forwards, of a cached chunk four: a first step, one of a chunk and one of two
    size, is_double = _size(config, train, int(bench.patience / (16 * each)))
    chunk = size if config.batch_size > config.chunk_size or not is_double else 2 * size
    settings = dataclasses.replace(
        config, chunk_size=chunk, batch_size=chunk, captions=_captions(bench, config, folder)
    )
    one = TuningRound(settings, _context(bench, folder), Part(None, train, val, val), labels, group)
    prepared, tuning = _timed(one.prepare)
    step = _steps(bench, one, tuning, size, config.chunk_size, is_double=is_double)
    validating = bench.usual(tuning.validate, most=1)
    keeping = bench.usual(lambda: one.keep(tuning.contrast.tuned, _progress()), most=1)
    adapter = str(one.folder / "adapter")
    loading, _ = _timed(
        lambda: load_dual_encoder(config.model, adapter=adapter, geometry=config.geometry, precision=config.precision)
    )
    return {
        "prepare": Law(prepared, memory_mb=step.memory_mb),
        "step": step,
        "validate": Law(texts, max(each, (validating - texts) / len(val)), step.memory_mb),
        "keep": Law(keeping),
        "reload": Law(loading),
    }


def _baseline(bench: Bench, config: Any, folder: RunFolder, group: Any) -> Mapping[str, Law]:
    from thoraclip.methods.baseline import BaselineRound
    from thoraclip.methods.supervised import scores_of
    from thoraclip.models.backbones import load_trained

    train, val = _parts(bench)
    labels = bench.sample.label_set(config.classes)
    one = BaselineRound(config, _context(bench, folder), Part(None, train, val, val), labels, group)
    prepared, network = _timed(one.prepare)
    first = min(_FIRST, config.batch_size, len(train))
    each = bench.usual(lambda: _step(one, network, first), most=1) / first
    size, is_double = _size(config, train, int(bench.patience / (4 * each)), least=2)  # batch normalisation needs two
    step = _steps(bench, one, network, size, config.chunk_size, is_double=is_double)
    some, greys = val[: max(_FIRST, int(bench.patience / (2 * each)))], bench.pictures(network.backbone.preprocess)
    scoring = bench.usual(lambda: scores_of(network.backbone, greys, some), most=2) / len(some)

    def keep() -> None:
        one.keep_curve(_progress())
        network.backbone.save(one.folder / "model", one.note(_progress(), 1))

    keeping, _ = _timed(keep)
    loading, _ = _timed(lambda: load_trained(one.folder / "model", precision=config.precision))
    return {
        "prepare": Law(prepared, memory_mb=step.memory_mb),
        "step": step,
        "validate": Law(seconds_each=scoring, memory_mb=step.memory_mb),
        "keep": Law(keeping),
        "reload": Law(loading),
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returned)."""
    found: list[Any] = []
    return seconds_of(lambda: found.append(work())), found[0]


def _progress() -> Any:
    from thoraclip.methods.training import Progressing

    return Progressing(step=1, rows=list(_ROWS))


def _size(config: Any, train: Rows, affordable: int, *, least: int = 1) -> tuple[int, bool]:
    """(images of a timed step, whether one of twice as many is needed too): a chunk, or what time and pictures allow."""
    chunk, is_cached = config.chunk_size, config.batch_size > config.chunk_size
    if not is_cached and chunk <= min(len(train), max(affordable, least)):
        return chunk, False
    return max(min(least, chunk), min(chunk, len(train) // 2, affordable)), True


def _steps(bench: Bench, one: Any, trainee: Any, size: int, chunk: int, *, is_double: bool) -> Law:
    """Cost of a step by its batch, from steps of `size` and, where the batch is larger, of twice that."""
    before = memory_mb()
    with peak_memory() as peak:
        plain = bench.usual(lambda: _step(one, trainee, size), most=3)
        slope = plain / size
        if is_double:
            double = bench.usual(lambda: _step(one, trainee, 2 * size), most=2)
            slope = max(0.2 * plain, double - plain) / size
        largest = min(chunk, one.config.chunk_size, 2 * size if is_double else size)
        memory = before + max(0.0, peak() - before) * chunk / largest
    return Law(max(0.0, plain - slope * size), slope, memory)


def _step(one: Any, trainee: Any, size: int) -> None:
    """A step of `rounds.fit` on the first batch of this size."""
    import torch

    from thoraclip.methods.training import Sampler

    rows = one.part.train
    sampler = Sampler(rows, one.targets[rows], total=len(one.targets), batch_size=min(size, len(rows)))
    trainee.backward(sampler.batch(0))
    torch.nn.utils.clip_grad_norm_(trainee.parameters.values(), 1.0)
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.after_step()


def _parts(bench: Bench) -> tuple[Rows, Rows]:
    """(training rows, validation rows) of the sample."""
    parts = np.array(in_parts(bench.sample).column("split"))
    return np.flatnonzero(parts != "val"), np.flatnonzero(parts == "val")


def _context(bench: Bench, folder: RunFolder) -> Context:
    return Context(bench.sample, folder, bench.folder / "embeddings", pixels=bench.folder / "pixels")


def _captions(bench: Bench, config: Any, folder: RunFolder) -> str:
    """A caption file for the sample: from the training's own; where the study is yet to write that, with as many words."""
    if not config.captions:
        return ""
    study, stand_in = bench.config, folder.file(CAPTIONS)
    if config.captions == str(bench.out / CAPTIONS) and not Path(config.captions).is_file():
        settings = CaptionConfig(captioner="template", everywhere=True)
        if study.captioner == "column":
            settings = CaptionConfig(captioner="column", column=study.caption_column)
        caption(bench.sample, settings, stand_in)
        return str(stand_in)
    known = read_captions(Path(config.captions))
    text_of, ids = dict(zip(known.image_id, known.text, strict=True)), bench.sample.column("image_id")
    texts = tuple(text_of.get(image, known.text[0]) for image in ids)  # only images that are trained on need one
    write_captions(stand_in, Captions(tuple(ids), (None,) * len(ids), texts, (False,) * len(ids), known.origin))
    return str(stand_in)
