"""ThoraCLIP: chest X-ray classifiers, compared so that the comparison can be believed.

The public door. Names are loaded when they are first used; importing the package imports neither torch nor any other
heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thoraclip.data.batches import pixel_cache
    from thoraclip.data.card import CardSettings, write_card
    from thoraclip.data.check import check, write_check
    from thoraclip.data.index import index
    from thoraclip.data.phantom import PhantomConfig, write_phantoms
    from thoraclip.data.splits import split_folds, split_fractions
    from thoraclip.errors import ThoraclipError
    from thoraclip.imaging import Preprocess, decode, preprocess
    from thoraclip.judge.report import MethodResult, judge, write_report
    from thoraclip.labels import LabelSet, load_prompts
    from thoraclip.methods.caption import CaptionConfig, caption
    from thoraclip.methods.embed import embed
    from thoraclip.methods.running import run_method
    from thoraclip.models.augment import Augmentation, augment
    from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
    from thoraclip.predictor import Predictor
    from thoraclip.study import read_study, run_study
    from thoraclip.tables.captions import Captions, read_captions, write_captions
    from thoraclip.tables.embeddings import Embeddings, read_embeddings
    from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest
    from thoraclip.tables.predictions import Predictions, read_predictions, write_predictions

_HOME = {
    "Augmentation": "models.augment",
    "CaptionConfig": "methods.caption",
    "Captions": "tables.captions",
    "CardSettings": "data.card",
    "DualEncoder": "models.dual_encoder",
    "Embeddings": "tables.embeddings",
    "LabelSet": "labels",
    "Manifest": "tables.manifest",
    "MethodResult": "judge.report",
    "PhantomConfig": "data.phantom",
    "Predictions": "tables.predictions",
    "Predictor": "predictor",
    "Preprocess": "imaging",
    "ThoraclipError": "errors",
    "augment": "models.augment",
    "caption": "methods.caption",
    "check": "data.check",
    "decode": "imaging",
    "embed": "methods.embed",
    "index": "data.index",
    "judge": "judge.report",
    "load_dual_encoder": "models.dual_encoder",
    "load_prompts": "labels",
    "pixel_cache": "data.batches",
    "preprocess": "imaging",
    "read_captions": "tables.captions",
    "read_embeddings": "tables.embeddings",
    "read_manifest": "tables.manifest",
    "read_predictions": "tables.predictions",
    "read_study": "study",
    "run_method": "methods.running",
    "run_study": "study",
    "split_folds": "data.splits",
    "split_fractions": "data.splits",
    "write_captions": "tables.captions",
    "write_card": "data.card",
    "write_check": "data.check",
    "write_manifest": "tables.manifest",
    "write_phantoms": "data.phantom",
    "write_predictions": "tables.predictions",
    "write_report": "judge.report",
}

__all__ = [
    "Augmentation",
    "CaptionConfig",
    "Captions",
    "CardSettings",
    "DualEncoder",
    "Embeddings",
    "LabelSet",
    "Manifest",
    "MethodResult",
    "PhantomConfig",
    "Predictions",
    "Predictor",
    "Preprocess",
    "ThoraclipError",
    "augment",
    "caption",
    "check",
    "decode",
    "embed",
    "index",
    "judge",
    "load_dual_encoder",
    "load_prompts",
    "pixel_cache",
    "preprocess",
    "read_captions",
    "read_embeddings",
    "read_manifest",
    "read_predictions",
    "read_study",
    "run_method",
    "run_study",
    "split_folds",
    "split_fractions",
    "write_captions",
    "write_card",
    "write_check",
    "write_manifest",
    "write_phantoms",
    "write_predictions",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'thoraclip' has no attribute '{name}'")
    return getattr(import_module(f"thoraclip.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
