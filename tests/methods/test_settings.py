"""What settings may be: both sides of every rule, by method."""

from __future__ import annotations

from typing import Any

import pytest

from thoraclip.errors import ConfigError
from thoraclip.methods.audit import AuditConfig
from thoraclip.methods.baseline import Config as Baseline
from thoraclip.methods.caption import CaptionConfig
from thoraclip.methods.probe import Config as Probe
from thoraclip.methods.trivial import Config as Trivial

TEMPLATE, COLUMN = {"captioner": "template"}, {"captioner": "column"}
LAST = "with select = last no validation is the better one"
INFORMED = {"solver": "lp++", "features": "projected"}

REFUSED: list[tuple[type[Any], dict[str, Any], str]] = [
    (Probe, {"solver": "lbfsg"}, "unknown solver 'lbfsg'; did you mean 'lbfgs'"),
    (Probe, {"features": "poled"}, "unknown features 'poled'; did you mean 'pooled'"),
    (Probe, {"l2_min": 2.0, "l2_max": 1.0}, "l2_min = 2.0: exceeds l2_max = 1.0; lower it, or raise l2_max"),
    (
        Probe,
        {"solver": "lp++"},
        "features = 'pooled' are not in the space shared with text; set features = 'projected'",
    ),
    (Trivial, {"features": ("thumbnial",)}, "unknown features 'thumbnial'; did you mean 'thumbnail'"),
    (Trivial, {"features": ()}, "features = []: one or more of thumbnail, histogram, appearance, file"),
    (Trivial, {"features": ("file", "file")}, "features = ['file', 'file']: every value is needed once"),
    (Baseline, {"train": "tail"}, "unknown train 'tail'"),
    (Baseline, {"batch_norm": "none"}, "unknown batch_norm"),
    (Baseline, {"select": "accuracy"}, "unknown select"),
    (Baseline, {"patience": 2, "select": "last"}, LAST),
    (
        Baseline,
        {"train": "head", "gradient_checkpointing": True},
        "a frozen network has no backward pass; leave it out",
    ),
    (AuditConfig, {"masks": "estimte"}, "masks = 'estimte'"),
    (AuditConfig, {"images": "some"}, "images = 'some': auto, all, or a whole number from 1 to 10,000,000 is needed"),
    (AuditConfig, {"images": -1}, "images = -1: auto, all, or a whole number from 1 to"),
    (
        AuditConfig,
        {"images": 10_000_001},
        "images = 10000001: auto, all, or a whole number from 1 to 10,000,000 is needed",
    ),
    (AuditConfig, {"images": True}, "images = True: auto, all, or a whole number from 1 to"),
    (AuditConfig, {"images": 1.5}, "images = 1.5: auto, all, or a whole number from 1 to"),
    (CaptionConfig, {"captioner": "blop"}, "unknown captioner 'blop'; did you mean 'blip'?"),
    (CaptionConfig, COLUMN, "captioner 'column': name the column of texts with --column NAME"),
    (CaptionConfig, COLUMN | {"column": "label"}, "column = 'label': is the class itself; take captioner 'template'"),
    (CaptionConfig, TEMPLATE | {"column": "x"}, "column = 'x': is read by captioner 'column' alone; leave it out"),
    (CaptionConfig, TEMPLATE | {"prompt": "a"}, "prompt = 'a': is read by captioner 'blip' alone; leave it out"),
    (CaptionConfig, TEMPLATE | {"append_label": True}, "captioner 'template' names the class already; leave it out"),
    (CaptionConfig, {"everywhere": True}, "everywhere = true: says where the class is appended; add --append-label"),
]

ALLOWED: list[tuple[type[Any], dict[str, Any]]] = [
    (Probe, {"l2_min": 1.0, "l2_max": 1.0, "l2_steps": 1, "epochs": 1, "train_batch_size": 1, "batch_size": 0}),
    (Probe, INFORMED | {"class_weight": "balanced"}),
    (Probe, {"solver": "adamw", "features": "pooled"}),
    (Trivial, {"max_iter": 1, "max_leaf_nodes": 2, "min_samples_leaf": 1, "l2": 0.0, "features": ("file",)}),
    (Baseline, {"layer_decay": 0.1, "label_smoothing": 0.9, "patience": 2, "gradient_checkpointing": True}),
    (Baseline, {"train": "head", "batch_norm": "frozen", "select": "last"}),
    (AuditConfig, {"images": "all", "folds": 2, "batch_size": 1, "resamples": 100, "saliency": 0, "masks": "none"}),
    (CaptionConfig, {"batch_size": 1, "max_new_tokens": 1, "append_label": True, "everywhere": True, "prompt": "a"}),
    (CaptionConfig, TEMPLATE | {"everywhere": True, "seed": 3}),
    (CaptionConfig, COLUMN | {"column": "report", "append_label": True}),
]


@pytest.mark.parametrize(("config", "settings", "message"), REFUSED)
def test_settings_out_of_range_are_named(config: type[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(**settings)
    assert message in str(refused.value)


@pytest.mark.parametrize(("config", "settings"), ALLOWED)
def test_what_is_just_within_the_rules_is_taken(config: type[Any], settings: dict[str, Any]) -> None:
    made = config(**settings)
    assert {name: getattr(made, name) for name in settings} == settings


DEFAULTS: dict[type[Any], dict[str, Any]] = {
    Probe: {
        "features": "pooled", "solver": "lbfgs", "l2_min": 1e-4, "l2_max": 10.0, "l2_steps": 11, "refit": True,
        "class_weight": "none", "val_fraction": 0.2, "epochs": 30, "learning_rate": 1e-3, "train_batch_size": 80, "seed": 0,
    },
    Trivial: {
        "features": ("thumbnail", "histogram", "appearance", "file"), "max_iter": 200, "learning_rate": 0.1,
        "max_leaf_nodes": 15, "min_samples_leaf": 20, "l2": 1.0, "refit": True, "val_fraction": 0.2, "seed": 0,
    },
    Baseline: {
        "pretrained": True, "train": "all", "layer_decay": 1.0, "batch_norm": "batch", "label_smoothing": 0.0,
        "weight_decay": 0.05, "select": "macro_f1",
    },
    AuditConfig: {
        "images": "auto", "masks": "auto", "folds": 5, "l2": 0.1, "batch_size": 64, "resamples": 1000, "saliency": 4,
        "duplicates": False, "seed": 0,
    },
    CaptionConfig: {
        "append_label": False, "everywhere": False, "max_new_tokens": 40, "geometry": "squash", "batch_size": 16, "seed": 0,
    },
}  # fmt: skip
"""Of each method what its documented results were made with."""


@pytest.mark.parametrize("config", DEFAULTS)
def test_the_defaults_are_those_of_the_documented_results(config: type[Any]) -> None:
    made = config()
    assert {name: getattr(made, name) for name in DEFAULTS[config]} == DEFAULTS[config]
