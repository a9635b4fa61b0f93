"""The public names and where they are; `__init__.py` loads each when it is first used."""

from .api.data import card, check, index, phantom, select
from .api.deployment import export, merge, predict, serve
from .api.judgement import audit, explain, report
from .api.manifests import join, overlap
from .api.methods import MethodFunction, caption, embed
from .api.results import Report, Run
from .api.splitting import split
from .api.start import demo, run_study
from .bundle.opening import open_bundle
from .cards import CardSettings, write_card
from .data.batches import pixel_cache
from .data.check import write_check
from .data.phantom import PhantomConfig, write_phantoms
from .data.splits import split_folds, split_fractions
from .errors import ThoraclipError
from .evaluation.report import MethodResult, write_report
from .imaging import Preprocess, decode, preprocess
from .labels import LabelSet, load_prompts
from .methods.caption import CaptionConfig
from .methods.running import run_method
from .models.augment import Augmentation, augment
from .models.dual_encoder import DualEncoder, load_dual_encoder
from .predictor import Predictor
from .study import read_study
from .tables.captions import Captions, read_captions, write_captions
from .tables.embeddings import Embeddings, read_embeddings
from .tables.manifest import Manifest, read_manifest, write_manifest
from .tables.predictions import Predictions, read_predictions, write_predictions

__all__ = [
    "Augmentation",
    "CaptionConfig",
    "Captions",
    "CardSettings",
    "DualEncoder",
    "Embeddings",
    "LabelSet",
    "Manifest",
    "MethodFunction",
    "MethodResult",
    "PhantomConfig",
    "Predictions",
    "Predictor",
    "Preprocess",
    "Report",
    "Run",
    "ThoraclipError",
    "audit",
    "augment",
    "caption",
    "card",
    "check",
    "decode",
    "demo",
    "embed",
    "explain",
    "export",
    "index",
    "join",
    "load_dual_encoder",
    "load_prompts",
    "merge",
    "open_bundle",
    "overlap",
    "phantom",
    "pixel_cache",
    "predict",
    "preprocess",
    "read_captions",
    "read_embeddings",
    "read_manifest",
    "read_predictions",
    "read_study",
    "report",
    "run_method",
    "run_study",
    "select",
    "serve",
    "split",
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

def __getattr__(name: str) -> MethodFunction: ...  # every kind in METHODS: zeroshot, finetune, ...
