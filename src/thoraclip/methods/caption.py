"""`caption`: a text for every image of a manifest, written by a model, by a template, or by whoever wrote a column."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from thoraclip.config import Settings
from thoraclip.data.batches import grey_batches
from thoraclip.documents import parse_json
from thoraclip.errors import ConfigError, InputError, ManifestError, ModelError
from thoraclip.imaging import DECODING
from thoraclip.labels import load_prompts
from thoraclip.models.captioner import load_captioner
from thoraclip.ranges import BatchSize, Geometry, OneOf, Precision, Seed, Tokens
from thoraclip.runs import Progress, canonical_json, digest, needing_room, remove_file, require_own, write_text
from thoraclip.tables.captions import Captions, append_label, read_captions, write_captions
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.store import require_place

__all__ = ["CAPTIONERS", "EVERYWHERE_LEAKS", "CaptionConfig", "CaptionSource", "caption"]

EVERYWHERE_LEAKS = (
    "everywhere: the class stands in the captions of images that are later scored, so it leaks into whatever reads "
    "them; thoraclip finetune --set append_label=true appends it to training captions only"
)


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(Settings):
    """Who writes the captions, and how."""

    captioner: Annotated[str, OneOf(CAPTIONERS)] = "blip"
    """blip (a model looks at the picture), template (from the manifest's columns), or column (the texts of one
    column)."""
    model: str = "Salesforce/blip-image-captioning-base"
    """Hub id or local folder of a BLIP captioner."""
    column: str = ""
    """Manifest column that holds the texts, for captioner column."""
    append_label: bool = False
    """Append the class to the captions of the training split, as the reference study did: "text, label"."""
    everywhere: bool = False
    """Write the class into the captions of all labelled images, those that are later scored included: a leak."""
    prompt: str = ""
    """Words that every caption of blip begins with; empty for none."""
    max_new_tokens: Tokens = 40
    """Tokens that blip may add."""
    geometry: Geometry = "squash"
    """How a picture becomes square: squash, crop or pad."""
    batch_size: BatchSize = 16
    """Images per forward pass."""
    precision: Precision = "auto"
    """fp32, bf16, or auto: bf16 where the device computes in it."""
    seed: Seed = 0
    """Chooses the words of the template."""

    def __post_init__(self) -> None:
        super().__post_init__()
        owners = {setting: name for name, source in CAPTIONERS.items() for setting in source.settings}
        for field in fields(self):
            value, owner = getattr(self, field.name), owners.get(field.name, self.captioner)
            if owner != self.captioner and value != field.default:
                raise ConfigError(f"{field.name} = {value!r}: is read by captioner '{owner}' alone; leave it out")
        if "column" in CAPTIONERS[self.captioner].settings and not self.column:
            raise ConfigError(f"captioner '{self.captioner}': name the column of texts with --column NAME")
        if self.column == "label":
            raise ConfigError(
                "column = 'label': is the class itself; take captioner 'template', which keeps note of it"
            )
        if CAPTIONERS[self.captioner].names_class and self.append_label:
            raise ConfigError(
                f"append_label = true: captioner '{self.captioner}' names the class already; leave it out"
            )
        if self.everywhere and not self.writes_class:
            raise ConfigError("everywhere = true: says where the class is appended; add --append-label")

    @property
    def writes_class(self) -> bool:
        """True where some captions are to name the class."""
        return self.append_label or CAPTIONERS[self.captioner].names_class


def caption(
    manifest: Manifest,
    config: CaptionConfig,
    out: Path,
    *,
    pixels: Path | None = None,
    progress: Progress | None = None,
) -> Captions:
    """Write one caption per image of a manifest to a Parquet file.

    A model's captions are kept line by line in `<out>.journal` while it works, so that a killed pass goes on where it
    stopped and ends with the same bytes; finished ones are used again. The others write anew.

    Args:
        manifest: N images.
        config: who writes, and whether the class is told.
        out: the file; ends in `.parquet`.
        pixels: folder of pixel caches; decoded pictures are kept there and read from there.
        progress: called with (done, total).

    Raises:
        InputError: the name of `out` does not end in `.parquet`.
        ConfigError: the class is to be named, and the manifest has no training split.
        ManifestError: `out` holds another table, or the column is missing, no text, or empty for an image.
        ModelError: the model cannot be loaded, or has no words for an image.
    """
    require_place(out, "captions")
    if out.exists():
        read_captions(out)  # whatever else bears this name is refused, not overwritten
    named = _names_class(manifest, config)
    origin = {"captioner": config.captioner, "append_label": config.append_label, "everywhere": config.everywhere}
    return CAPTIONERS[config.captioner].write(manifest, config, named, origin, out, pixels, progress)


def _store(
    out: Path, manifest: Manifest, texts: Sequence[str], named: Sequence[bool], origin: dict[str, Any]
) -> Captions:
    ids, contents, labels = (tuple(manifest.column(name)) for name in ("image_id", "sha256", "label"))
    with_label = tuple(is_named and label is not None for is_named, label in zip(named, labels, strict=True))
    captions = Captions(ids, contents, tuple(texts), with_label, origin)
    write_captions(out, captions)
    return captions


def _names_class(manifest: Manifest, config: CaptionConfig) -> list[bool]:
    """Per image: may its caption name the class? Those of the training split, or all."""
    if not config.writes_class or config.everywhere:
        return [config.everywhere] * len(manifest)
    split, folds = manifest.column("split"), any(fold is not None for fold in manifest.column("fold"))
    if folds or "train" not in split:
        raise ConfigError(
            f"manifest: {'has folds' if folds else 'no image is in split train'}, so there is no training split whose "
            "captions may name the class; caption without it and let thoraclip finetune --set append_label=true append "
            "it to training captions, or name it in all captions with --everywhere"
        )
    return [s == "train" for s in split]


def _append(texts: Sequence[str], manifest: Manifest, named: Sequence[bool]) -> list[str]:
    rows = zip(texts, manifest.column("label"), named, strict=True)
    return [append_label(text, label) if is_named and label is not None else text for text, label, is_named in rows]


_VIEWS = {
    "PA": ("PA chest X-ray", "posteroanterior chest radiograph", "PA chest film"),
    "AP": ("AP chest X-ray", "anteroposterior chest radiograph", "AP chest film"),
}
_NO_VIEW = ("chest X-ray", "chest radiograph", "chest film")
_UNTOLD = ("", " of the lungs and heart", " of one patient")
_CLASS = (" showing {}", " with {}", " of a patient with {}")


def _write_template(
    manifest: Manifest, config: CaptionConfig, named: Sequence[bool], origin: dict[str, Any], out: Path, *_: Any
) -> Captions:
    """View, class and place of the finding, where known and allowed; else the view and words that fit any chest.

    The words of an image are a function of the seed and its id alone; the view is written alike for all classes.
    """
    names = replace(load_prompts("chest-xray-ensemble"), templates=("{}",))
    columns = [
        manifest.column(name) if name in manifest.table.column_names else [None] * len(manifest)
        for name in ("image_id", "view", "label", "finding_side", "finding_zone")
    ]
    texts = []
    for image_id, view, label, side, zone, is_named in zip(*columns, named, strict=True):
        words = random.Random(f"{config.seed} {image_id}")  # no secret hangs on it; equal in every version of Python
        opening = words.choice(_VIEWS.get(view or "", tuple(f"{w}, {view} view" if view else w for w in _NO_VIEW)))
        ending, phrase = words.choice(_UNTOLD), words.choice(_CLASS)
        if is_named:
            ending = phrase.format(words.choice(names.for_class(label))) if label is not None else ""
            ending += _place(side, zone)
        texts.append(f"{opening}{ending}.")
    return _store(out, manifest, texts, named, origin | {"seed": config.seed})


def _place(side: str | None, zone: str | None) -> str:
    """Where the finding is; nothing where that is unknown."""
    if not (side or zone):
        return ""
    lungs = {"both": "both lungs", "": "the lungs"}.get(side or "", f"the {side} lung")
    return f", finding in the {zone} zone of {lungs}" if zone else f", finding in {lungs}"


def _write_column(
    manifest: Manifest, config: CaptionConfig, named: Sequence[bool], origin: dict[str, Any], out: Path, *_: Any
) -> Captions:
    """The texts of a column, stripped."""
    name, values = config.column, manifest.column(config.column)
    foreign = next((v for v in values if v is not None and not isinstance(v, str)), None)
    if foreign is not None:
        raise ManifestError(f"manifest: column '{name}' holds {foreign!r}, which is no text; name a column of texts")
    texts = [(value or "").strip() for value in values]
    empty = [i for i, text in zip(manifest.column("image_id"), texts, strict=True) if not text]
    if empty:
        raise ManifestError(
            f"manifest: image '{empty[0]}' has no text in column '{name}' ({len(empty)} such images); fill it in, or "
            "leave those images out of the manifest"
        )
    return _store(out, manifest, _append(texts, manifest, named), named, origin | {"column": name})


def _write_by_model(
    manifest: Manifest,
    config: CaptionConfig,
    named: Sequence[bool],
    origin: dict[str, Any],
    out: Path,
    pixels: Path | None,
    progress: Progress | None,
) -> Captions:
    """The model's text for every image, in manifest order; each batch is on disk before the next one is begun."""
    size, ids = config.batch_size, manifest.column("image_id")
    captioner = load_captioner(
        config.model,
        prompt=config.prompt,
        max_new_tokens=config.max_new_tokens,
        geometry=config.geometry,
        precision=config.precision,
    )
    work = digest([manifest.content_fingerprint, dict(captioner.origin), DECODING])
    inputs = digest([work, list(named), manifest.column("label") if any(named) else None])
    journal, header = out.with_name(f"{out.name}.journal"), canonical_json({"schema": 1, "token": digest([work, size])})
    captions = read_captions(out) if out.exists() else None
    if captions is None or captions.origin.get("inputs") != inputs:
        require_own(journal.parent, {journal.name: ()})
        texts = _read_journal(journal, header, ids, size)
        write_text(journal, "\n".join([header, *map(_line, ids, texts)]) + "\n")  # a torn end is gone
        spec, start = captioner.preprocess, len(texts)
        batches = grey_batches(manifest, spec, batch_size=size, start=start, pixels=pixels, progress=progress)
        with needing_room(journal), journal.open("a", encoding="utf-8", newline="\n") as stream:
            for first, greys in batches if start < len(ids) else ():
                batch = captioner.caption(greys, check=first == start)
                if "" in batch:  # any words put in its place would pass for the model's
                    raise ModelError(
                        f"model '{captioner.name}': has no words for image '{ids[first + batch.index('')]}'; begin its "
                        "captions with a --prompt, or name another model"
                    )
                texts += batch
                stream.writelines(_line(i, text) + "\n" for i, text in zip(ids[first:], batch, strict=False))
                stream.flush()
                if progress:
                    progress(len(texts), len(ids))
        facts = {**origin, **captioner.origin, "inputs": inputs}
        captions = _store(out, manifest, _append(texts, manifest, named), named, facts)
    remove_file(journal)
    return captions


def _line(image_id: str, text: str) -> str:
    return canonical_json({"image_id": image_id, "text": text})


def _read_journal(journal: Path, header: str, ids: Sequence[str], batch_size: int) -> list[str]:
    """The texts of whole batches from the first row on; none of a journal of other work, none from a torn line on."""
    try:
        first, *lines = journal.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    texts: list[str] = []
    for image_id, line in zip(ids, lines if first == header else [], strict=False):
        try:
            entry = parse_json(line, journal)
            if entry["image_id"] != image_id or not isinstance(entry["text"], str):
                break
        except (InputError, KeyError, TypeError):
            break
        texts.append(entry["text"])
    return texts if len(texts) == len(ids) else texts[: len(texts) - len(texts) % batch_size]


@dataclass(frozen=True)
class CaptionSource:
    """One entry of `CAPTIONERS`."""

    # (manifest, config, which captions may name the class, origin, file, pixel folder or `None`, progress or `None`) ->
    # the captions, which it has written to the file
    write: Callable[..., Captions]
    settings: tuple[str, ...] = ()  # fields of `CaptionConfig` that it alone reads
    names_class: bool = False  # its texts name the class without `append_label`
    reads_images: bool = False  # a model sees every image


CAPTIONERS: Mapping[str, CaptionSource] = {
    "blip": CaptionSource(_write_by_model, ("model", "prompt", "max_new_tokens", "geometry"), reads_images=True),
    "template": CaptionSource(_write_template, names_class=True),
    "column": CaptionSource(_write_column, ("column",)),
}
"""Name -> who writes; the setting `captioner` takes these names."""
