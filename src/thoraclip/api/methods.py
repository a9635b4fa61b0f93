"""Panel Methods: caption, embed, and one function for every entry of `METHODS`."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thoraclip.api.hooks import RUN_FILES, Announce, File, config_of, hooks, read_images, settings_of, to_path, writes
from thoraclip.api.results import Run
from thoraclip.errors import ConfigError
from thoraclip.methods import METHODS
from thoraclip.ranges import AnyBatchSize, BatchSize, Geometry, Precision, RuntimeName, Seed, Tokens, Workers, checked
from thoraclip.runs import Progress, is_main_process, process_count

if TYPE_CHECKING:
    from thoraclip.api.hooks import Images
    from thoraclip.tables.captions import Captions
    from thoraclip.tables.embeddings import Embeddings

    Model = str | Path

__all__ = ["MethodFunction", "caption", "embed"]


@checked
@writes(file=True, may_only_read=True)
def caption(
    manifest: Images,
    *,
    captioner: str,
    out: File,
    model: Model = "Salesforce/blip-image-captioning-base",
    column: str = "",
    append_label: bool = False,
    everywhere: bool = False,
    prompt: str = "",
    max_new_tokens: Tokens = 40,
    geometry: Geometry = "squash",
    batch_size: BatchSize = 16,
    precision: Precision = "auto",
    seed: Seed = 0,
    pixels: File | None = None,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> Captions:
    """Write a text for every image, by a model, a template or from a column; goes on where it was interrupted.

    Args:
        manifest: the images.
        captioner: blip, template or column.
        out: captions file to write (.parquet).
        model: blip: Hub id or local folder.
        column: column: manifest column that holds the texts.
        append_label: append the class to captions of the training split.
        everywhere: tell the class in all captions, those of scored images too.
        prompt: blip: words that every caption begins with.
        max_new_tokens: blip: tokens that it may add.
        geometry: blip: squash, crop or pad.
        batch_size: blip: images per forward pass.
        precision: blip: fp32, bf16 or auto.
        seed: template: seed of the choice of words.
        pixels: folder that keeps decoded images, so that each is decoded once for all methods.
        progress, announce: see `thoraclip.api`.
    """
    named = locals()
    from thoraclip.methods.caption import EVERYWHERE_LEAKS, CaptionConfig
    from thoraclip.methods.caption import caption as write

    config, (draw, log) = config_of(CaptionConfig, named), hooks(progress, announce)
    if everywhere:
        log(EVERYWHERE_LEAKS)
    return write(read_images(manifest, log=log), config, Path(out), pixels=to_path(pixels), progress=draw)


@checked
@writes(own={"embeddings.json": ()}, may_only_read=True)
def embed(
    manifest: Images,
    *,
    model: Model,
    out: File,
    adapter: Model = "",
    geometry: Geometry = "squash",
    remedy: str = "none",
    batch_size: AnyBatchSize = 0,
    precision: Precision = "auto",
    runtime: RuntimeName = "auto",
    pixels: File | None = None,
    engine: str = "threads",
    workers: Workers = 0,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> Embeddings | None:
    """Run a frozen encoder over a manifest once and keep its features; goes on where it was interrupted.

    Several processes that `torchrun` or `accelerate launch` started share the work. The features are the same bytes
    with any number of threads, processes and actors, in the same runtime.

    Args:
        manifest: the images.
        model: Hub id, local folder, or tiny-clip.
        out: folder to write to.
        adapter: PEFT adapter folder; default: none.
        geometry: squash, crop or pad.
        remedy: what is done to every picture against shortcuts: names joined by +, see docs/remedies.md.
        batch_size: images per forward pass; 0: what suits the device.
        precision: fp32, bf16 or auto.
        runtime: fp32 on a CPU: torch, onnxruntime or openvino, or auto: the fastest for long work, equal to 1e-5.
        pixels: folder that keeps decoded images, so that each is decoded once for all methods.
        engine: threads, or ray: the actors of a Ray cluster (RAY_ADDRESS, or one that is started here).
        workers: ray: actors; 0: one on each GPU, or, without a GPU, on each machine.
        progress, announce: see `thoraclip.api`.

    Returns:
        The features; `None` in all but the first of several processes.
    """
    named = locals()
    from thoraclip.engine import require_engine
    from thoraclip.methods.embed import embed as write
    from thoraclip.methods.encoders import EncoderConfig, load_encoder
    from thoraclip.methods.engines import by_ray
    from thoraclip.methods.training.processes import ProcessGroup

    require_engine(engine, workers=workers)
    if engine == "ray" and (pixels is not None or process_count() > 1):
        raise ConfigError("engine = ray decodes where it encodes: leave out --pixels, and start it without a launcher")
    images, config, (draw, log) = read_images(manifest), config_of(EncoderConfig, named), hooks(progress, announce)
    group = ProcessGroup() if process_count() > 1 else None
    encoder = load_encoder(config)
    done = write(
        images,
        encoder,
        Path(out),
        batch_size=batch_size,
        runtime=runtime,
        pixels=to_path(pixels),
        group=group,
        progress=draw,
        announce=log,
        engine=by_ray(config, images, encoder.description, workers=workers) if engine == "ray" else None,
    )
    return done if is_main_process() else None


class MethodFunction(Protocol):
    """Run one method: `zeroshot`, `finetune`, ..., a function for every kind in `METHODS`. What is there and valid is
    only read.

    Its settings are keywords too, the same as behind `--set`; `help(thoraclip.probe)` lists those of a method.
    """

    __name__: str

    def __call__(
        self,
        manifest: Images,
        *,
        out: File,
        config: File | None = None,
        pixels: File | None = None,
        progress: bool | Progress = False,
        announce: Announce | None = None,
        **settings: Any,
    ) -> Run | Any:  # None is too rare to ask for it after every call
        """Run the method.

        Args:
            manifest: the split images.
            out: run folder to write to.
            config: TOML file with settings.
            pixels: folder that keeps decoded images, so that each is decoded once for all methods.
            progress, announce: see `thoraclip.api`.
            settings: settings of the method; they win over the file.

        Returns:
            A `Run`: `predictions`, `metrics`, `details` and `folder`; None in all but the first of several processes.

        Raises:
            ThoraclipError: a setting is unknown or out of range, or the images do not serve.
        """


_OF_METHODS = ("details.json", "done.json", "README.md", "adapter", "last", "model")
"""What methods write besides, and studies do not."""


@cache
def method_function(kind: str) -> MethodFunction:
    """The function of a method; its signature and its help name every setting."""
    from thoraclip.config import field_help

    own_files = {"provenance.json": (*RUN_FILES["provenance.json"], *_OF_METHODS)}

    @checked
    @writes(own=own_files, others={"runs": "a study"}, may_only_read=True)
    def run(
        manifest: Images,
        *,
        out: File,
        config: File | None = None,
        pixels: File | None = None,
        progress: bool | Progress = False,
        announce: Announce | None = None,
        **settings: Any,
    ) -> Run | None:
        from thoraclip.methods.checking import check_method
        from thoraclip.methods.encoders import stated_by_embeddings
        from thoraclip.methods.parts import parts_of
        from thoraclip.methods.running import run_method

        chosen = settings_of(METHODS[kind].config_type, config, settings, where=kind, more=stated_by_embeddings)
        draw, log = hooks(progress, announce)
        images = read_images(manifest, log=log)
        check_method(kind, chosen, images)
        if hasattr(chosen, "val_fraction"):  # a class without an image in one part stops a method, and no study
            list(parts_of(chosen, images, images.label_set(chosen.classes)))
        done = run_method(kind, chosen, images, Path(out), pixels=to_path(pixels), progress=draw, announce=log)
        return done and Run(kind, Path(out), *done)

    fields, kinds = dataclasses.fields(METHODS[kind].config_type), typing.get_type_hints(METHODS[kind].config_type)
    texts = field_help(METHODS[kind].config_type)  # type: ignore[arg-type]
    lines = "".join(f"    {field.name}: {texts[field.name]}\n" for field in fields)
    arguments = inspect.cleandoc(MethodFunction.__call__.__doc__ or "").partition("\n\n")[2]
    arguments = arguments.replace("    settings: settings of the method; they win over the file.\n", lines)
    own, keyword = inspect.signature(run), inspect.Parameter.KEYWORD_ONLY
    keywords = [inspect.Parameter(f.name, keyword, default=f.default, annotation=kinds[f.name]) for f in fields]
    named = list(own.parameters.values())[:-1]  # all but the settings
    run.__name__ = run.__qualname__ = kind
    run.__doc__ = f"{METHODS[kind].summary}\n\n{arguments}"
    run.__signature__ = own.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
    return run


def __getattr__(name: str) -> MethodFunction:
    if name not in METHODS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return method_function(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *METHODS})
