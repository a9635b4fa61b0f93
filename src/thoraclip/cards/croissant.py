"""A Croissant 1.0 record (JSON-LD, http://mlcommons.org/croissant/1.0) with the RAI vocabulary (.../croissant/RAI/1.0).

Croissant asks for name, description, licence, creator, address and date of publication. Where the user gives none, the
four that are text say "not stated"; an address and a date cannot say so and are left out, and so are version and
citation.
"""

from __future__ import annotations

import copy
import datetime
import glob
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from thoraclip.cards.cautions import percent
from thoraclip.cards.facts import data_facts, summary
from thoraclip.config import Settings
from thoraclip.errors import ConfigError, InputError
from thoraclip.pages import counted
from thoraclip.runs import file_sha256
from thoraclip.tables.manifest import Manifest

__all__ = ["NOT_STATED", "CardSettings", "croissant_record"]

NOT_STATED = "not stated"
"""Stands wherever neither the manifest nor the user says anything."""

_TERMS = """citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes isLiveDataset
jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source subField
transform"""
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS.split()},
}
"""The context of the Croissant 1.0 specification."""

_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "DICOM": "application/dicom"}
_SPLIT_TERMS = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
_DESCRIPTIONS = {
    "image_id": "Identifier of the image.",
    "path": "File of the image, below the folder of the images.",
    "sha256": "SHA-256 of the file.",
    "phash": "Perceptual hash of 64 bits, hexadecimal.",
    "label": "Class; null where unknown.",
    "split": "train, val or test; null where none.",
    "fold": "Fold of the cross-validation; null where none.",
    "patient": "Pseudonym of the patient; null where unknown.",
    "source": "Where the image was taken from; null where unknown.",
    "view": "Projection; null where unknown.",
    "sex": "Sex of the patient; null where unknown.",
    "age_years": "Age of the patient in years; null where unknown.",
    "lung_mask": "File of the lung mask; null where there is none.",
    "infection_mask": "File of the infection mask; null where there is none.",
    "width": "Width in pixels.",
    "height": "Height in pixels.",
    "mode": "Pixel mode of the file as stored.",
    "format": "Format of the file.",
}
_DATA_TYPES = (
    (pa.types.is_string, "sc:Text"),
    (pa.types.is_large_string, "sc:Text"),
    (pa.types.is_integer, "sc:Integer"),
    (pa.types.is_floating, "sc:Float"),
    (pa.types.is_boolean, "sc:Boolean"),
    (pa.types.is_date, "sc:Date"),
    (pa.types.is_timestamp, "sc:DateTime"),
)
"""Croissant's types of columns; nested and binary ones have none, and the record leaves them out."""
_NONE_IS_NONE = frozenset({"split", "fold", "lung_mask", "infection_mask"})
"""Columns whose null means that there is none, not that it is unknown."""
_MOST_GLOBS = 100


@dataclass(frozen=True, kw_only=True)
class CardSettings(Settings):
    """What the user adds to the card; an empty field is shown as "not stated", never filled in.

    Raises:
        ConfigError: an address that is not absolute, or a date that is not ISO 8601.
    """

    name: str = ""
    """Name of the data set."""
    description: str = ""
    """What it is, who made it and why, in a few sentences."""
    licence: str = ""
    """Licence of the images: the address of its text, or its name."""
    url: str = ""
    """Where the data set can be had (https://...)."""
    citation: str = ""
    """How to cite it, BibTeX or text."""
    creator: str = ""
    """Who made it: a person or an organisation."""
    version: str = ""
    """Its version, as in 1.0.0."""
    date_published: str = ""
    """When it was published, as in 2024-05-01."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url and not re.fullmatch(r"https?://[^\s<>]+", self.url):
            raise ConfigError(f"url '{self.url}' is not an absolute address; write it as in https://example.org/data")
        if self.date_published:
            try:
                datetime.date.fromisoformat(self.date_published)
            except ValueError:
                said = f"date_published '{self.date_published}' is not a date"
                raise ConfigError(f"{said}; write it as in 2024-05-01") from None


def croissant_record(
    manifest: Manifest,
    manifest_file: Path,
    settings: CardSettings,
    *,
    content_url: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the record.

    Args:
        manifest_file: the Parquet file that holds the manifest.
        content_url: address of that file relative to the record; its bare name by default.
        facts: those of the manifest, where they are at hand.

    Raises:
        InputError: no such manifest file.
    """
    if not manifest_file.is_file():
        raise InputError(f"{manifest_file}: no such manifest file; write it first with: thoraclip index")
    facts = data_facts(manifest) if facts is None else facts
    counts = f"Counted from the manifest: {summary(facts)} Research use only, not for diagnosis."
    optional = {"url": "url", "citeAs": "citation", "version": "version", "datePublished": "date_published"}
    schema, enumerations = manifest.table.schema, _enumerations(facts)
    columns = {f.name: kinds[0] for f in schema if (kinds := [kind for test, kind in _DATA_TYPES if test(f.type)])}
    file = {
        "@type": "cr:FileObject",
        "@id": "manifest",
        "name": manifest_file.name,
        "description": "One row per image; null is unknown.",
        "contentUrl": content_url or manifest_file.name,
        "encodingFormat": "application/x-parquet",
        "sha256": file_sha256(manifest_file),
    }
    return {
        "@context": copy.deepcopy(_CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": settings.name or f"Chest X-ray images (name {NOT_STATED})",
        "description": f"{settings.description or f'Description {NOT_STATED}.'} {counts}",
        "license": settings.licence or NOT_STATED,
        "creator": {"@type": "sc:Organization", "name": settings.creator or NOT_STATED},
        **{key: value for key, field in optional.items() if (value := getattr(settings, field))},
        **_responsible(facts),
        "distribution": [file, *_picture_sets(manifest)],
        "recordSet": [_images(columns, enumerations), *enumerations.values()],
    }


def _responsible(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The RAI properties that the facts can fill."""
    biases, limitations = ([c["text"] for c in facts["cautions"] if c["kind"] == k] for k in ("bias", "limitation"))
    known = {c["name"]: c["known"] for c in facts["columns"]}
    personal = [
        f"{what} of {counted(known[name], 'image')}"
        for name, what in (("patient", "Patient identifiers"), ("sex", "Sex"), ("age_years", "Age in years"))
        if known[name]
    ]
    lacking = [
        f"{c['name']} of {percent(facts['images'] - c['known'], facts['images'])}"
        for c in facts["columns"]
        if c["known"] < facts["images"] and c["name"] not in _NONE_IS_NONE
    ]
    properties = {
        "rai:dataBiases": biases,
        "rai:dataLimitations": limitations,
        "rai:personalSensitiveInformation": [*personal, "Radiographs of people are health data, also without names"],
        "rai:dataCollectionMissingData": f"Null, never guessed: {', '.join(lacking)} of the images." if lacking else "",
        "rai:dataUseCases": ["Research on chest X-ray classifiers; research use only, not for diagnosis"],
    }
    return {key: value for key, value in properties.items() if value}


def _picture_sets(manifest: Manifest) -> list[dict[str, Any]]:
    """One set of files per format, as globs below the folder of the images."""
    globs, suffixes = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for path, kind in zip(manifest.column("path"), manifest.column("format"), strict=True):
        if path is not None:
            file = PurePosixPath(path)
            suffixes[kind or ""].add(f"**/*{glob.escape(file.suffix)}")
            globs[kind or ""].add(f"{glob.escape(str(file.parent))}/*{glob.escape(file.suffix)}".removeprefix("./"))
    return [
        {
            "@type": "cr:FileSet",
            "@id": f"pictures-{quote(kind.lower() or 'unknown', safe='')}",
            "name": f"pictures, {kind or 'format unknown'}",
            "description": "Image files, below the folder of the images; column path of the manifest lists them.",
            "encodingFormat": _MEDIA_TYPES.get(kind, "application/octet-stream"),
            "includes": sorted(globs[kind] if len(globs[kind]) <= _MOST_GLOBS else suffixes[kind]),
        }
        for kind in sorted(globs)
    ]


def _images(columns: Mapping[str, str], names: Collection[str]) -> dict[str, Any]:
    """The records of the images; `names` are those of the enumerations."""
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"images/{quote(name, safe='')}",
            "name": name,
            "description": _DESCRIPTIONS.get(name, "Column that the user added."),
            "dataType": kind,
            "source": {"fileObject": {"@id": "manifest"}, "extract": {"column": name}},
        }
        for name, kind in columns.items()
    ]
    for field in fields:
        if field["name"] in ("label", "split") and f"{field['name']}s" in names:
            field["references"] = {"field": {"@id": f"{field['name']}s/name"}}
    return _record_set("images", "One record per image.") | {"key": {"@id": "images/image_id"}, "field": fields}


def _enumerations(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The classes, and the splits with Croissant's own terms for them, by name."""
    found = {}
    if facts["classes"]:
        rows = [{"labels/name": c["label"]} for c in facts["classes"]]
        found["labels"] = _enumeration("labels", "The classes of column label.", "sc:Enumeration", rows)
    splits = [s for s in (facts["splits"] or {"columns": ()})["columns"] if s is not None]
    if splits:
        rows = [{"splits/name": s, "splits/url": _SPLIT_TERMS[s]} for s in splits]
        found["splits"] = _enumeration("splits", "The splits of column split.", "cr:Split", rows)
    return found


def _enumeration(name: str, description: str, kind: str, rows: list[dict[str, str]]) -> dict[str, Any]:
    types = {f"{name}/name": "sc:Text", f"{name}/url": "sc:URL"}
    fields = [
        {"@type": "cr:Field", "@id": key, "name": key.rpartition("/")[2], "dataType": types[key]} for key in rows[0]
    ]
    record_set = _record_set(name, description) | {"dataType": kind, "key": {"@id": f"{name}/name"}}
    return record_set | {"field": fields, "data": rows}


def _record_set(name: str, description: str) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": description}
