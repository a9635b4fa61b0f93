"""ThoraCLIP: chest X-ray classifiers, compared so that the comparison can be believed.

The public door: one function per command (see `thoraclip.verbs`), and the tables and parts that they work with. Names are
loaded when they are first used; importing the package imports neither torch nor any other heavy library.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thoraclip.data.batches import pixel_cache as pixel_cache
    from thoraclip.data.card import CardSettings as CardSettings
    from thoraclip.data.card import write_card as write_card
    from thoraclip.data.check import write_check as write_check
    from thoraclip.data.phantom import PhantomConfig as PhantomConfig
    from thoraclip.data.phantom import write_phantoms as write_phantoms
    from thoraclip.data.splits import split_folds as split_folds
    from thoraclip.data.splits import split_fractions as split_fractions
    from thoraclip.deploy.opening import open_bundle as open_bundle
    from thoraclip.errors import ThoraclipError as ThoraclipError
    from thoraclip.imaging import Preprocess as Preprocess
    from thoraclip.imaging import decode as decode
    from thoraclip.imaging import preprocess as preprocess
    from thoraclip.judge.report import MethodResult as MethodResult
    from thoraclip.judge.report import write_report as write_report
    from thoraclip.labels import LabelSet as LabelSet
    from thoraclip.labels import load_prompts as load_prompts
    from thoraclip.methods.caption import CaptionConfig as CaptionConfig
    from thoraclip.methods.running import run_method as run_method
    from thoraclip.models.augment import Augmentation as Augmentation
    from thoraclip.models.augment import augment as augment
    from thoraclip.models.dual_encoder import DualEncoder as DualEncoder
    from thoraclip.models.dual_encoder import load_dual_encoder as load_dual_encoder
    from thoraclip.predictor import Predictor as Predictor
    from thoraclip.study import read_study as read_study
    from thoraclip.tables.captions import Captions as Captions
    from thoraclip.tables.captions import read_captions as read_captions
    from thoraclip.tables.captions import write_captions as write_captions
    from thoraclip.tables.embeddings import Embeddings as Embeddings
    from thoraclip.tables.embeddings import read_embeddings as read_embeddings
    from thoraclip.tables.manifest import Manifest as Manifest
    from thoraclip.tables.manifest import read_manifest as read_manifest
    from thoraclip.tables.manifest import write_manifest as write_manifest
    from thoraclip.tables.predictions import Predictions as Predictions
    from thoraclip.tables.predictions import read_predictions as read_predictions
    from thoraclip.tables.predictions import write_predictions as write_predictions
    from thoraclip.verbs import MethodVerb
    from thoraclip.verbs import audit as audit
    from thoraclip.verbs import caption as caption
    from thoraclip.verbs import card as card
    from thoraclip.verbs import check as check
    from thoraclip.verbs import demo as demo
    from thoraclip.verbs import embed as embed
    from thoraclip.verbs import explain as explain
    from thoraclip.verbs import export as export
    from thoraclip.verbs import index as index
    from thoraclip.verbs import phantom as phantom
    from thoraclip.verbs import predict as predict
    from thoraclip.verbs import report as report
    from thoraclip.verbs import run_study as run_study
    from thoraclip.verbs import serve as serve
    from thoraclip.verbs import split as split

__all__: list[str]  # every name of _NAMES and of METHODS, made when it is asked for

_NAMES = {
    "data.batches": ("pixel_cache",),
    "data.card": ("CardSettings", "write_card"),
    "data.check": ("write_check",),
    "data.phantom": ("PhantomConfig", "write_phantoms"),
    "data.splits": ("split_folds", "split_fractions"),
    "deploy.opening": ("open_bundle",),
    "errors": ("ThoraclipError",),
    "imaging": ("Preprocess", "decode", "preprocess"),
    "judge.report": ("MethodResult", "write_report"),
    "labels": ("LabelSet", "load_prompts"),
    "methods.caption": ("CaptionConfig",),
    "methods.running": ("run_method",),
    "models.augment": ("Augmentation", "augment"),
    "models.dual_encoder": ("DualEncoder", "load_dual_encoder"),
    "predictor": ("Predictor",),
    "study": ("read_study",),
    "tables.captions": ("Captions", "read_captions", "write_captions"),
    "tables.embeddings": ("Embeddings", "read_embeddings"),
    "tables.manifest": ("Manifest", "read_manifest", "write_manifest"),
    "tables.predictions": ("Predictions", "read_predictions", "write_predictions"),
    "verbs": (
        "audit",
        "caption",
        "card",
        "check",
        "demo",
        "embed",
        "explain",
        "export",
        "index",
        "phantom",
        "predict",
        "report",
        "run_study",
        "serve",
        "split",
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> MethodVerb:  # type checkers find all others above
    if name == "__all__":
        return __dir__()  # type: ignore[return-value]
    if name not in _HOME and name not in _methods():
        raise AttributeError(f"module 'thoraclip' has no attribute '{name}'")
    found: MethodVerb = getattr(import_module(f"thoraclip.{_HOME.get(name, 'verbs')}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*_HOME, *_methods()})


def _methods() -> Mapping[str, Any]:
    methods: Mapping[str, Any] = import_module("thoraclip.methods").METHODS
    return methods
