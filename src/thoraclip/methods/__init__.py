"""The methods: each a verb that reads a manifest and writes predictions.

`METHODS` is the one list of them; the command line, the study and the docs follow from it. A method is a module with
`Config` (a frozen dataclass) and `run(config, context) -> MethodOutput`. Where to read first:

    finetune.py, baseline.py    what is trained; the steps of finetune are contrastive.py and label_step.py, both on
                                image_step.py; tokens.py keeps what frozen blocks give; the loop is in training/
    probe.py, zeroshot.py       a linear head, or class prompts, on features that are computed once (embed.py)
    parts.py                    which images a training uses: folds or a split, few shots, validation images
    running.py                  what happens around `run`: folder, resume, files
    tracking.py                 what MLflow, TensorBoard, trackio and W&B get
    predictors.py               from a finished run to its classifiers, for audits, heat maps and original.py
    merge.py                    from a finished run to a plain Transformers folder
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.runs import process_count

__all__ = ["METHODS", "Method", "find_method", "require_shared_work"]


@dataclass(frozen=True)
class Method:
    """One entry of the registry."""

    module: str  # where `Config` and `run` are
    summary: str  # one line for the help
    is_seeded: bool  # True where the result depends on the seed; a study repeats only such methods
    # True where a run scores other images; then the module has `load_classifier(config, folder, fold, labels)`, which
    # `audit`, `explain`, `export` and external sets call
    keeps_classifier: bool = False
    trains_adapters: bool = False  # True where its run folder can be the `adapter` of another method
    # True where it fits a linear head on frozen features, which can be fitted again on other images
    fits_head: bool = False
    embeds: bool = False  # True where it reads the features of all images, which the runs of a study share
    # True where it trains a network in steps (`training.settings.TrainingSettings`); several processes can share that
    trains_network: bool = False
    inspects: bool = False  # True where it reads the appearance of every image (`data.check.inspect`)
    # about how long a training image of anything else that is fitted takes on one core, for the dry run
    fit_seconds: float = 0.0

    @property
    def is_trained(self) -> bool:
        """True where weights come out; its run folder then gets a model card."""
        return self.trains_network or self.fits_head

    @property
    def config_type(self) -> type[Any]:
        """The method's config class."""
        kind: type[Any] = import_module(self.module).Config
        return kind


METHODS: Mapping[str, Method] = {
    "zeroshot": Method(
        "thoraclip.methods.zeroshot",
        "Classify by the nearest class prompts, without training.",
        False,
        keeps_classifier=True,
        embeds=True,
    ),
    "finetune": Method(
        "thoraclip.methods.finetune",
        "Tune LoRA adapters, on images with texts or with classes alone; any batch size in any memory.",
        True,
        keeps_classifier=True,
        trains_adapters=True,
        embeds=True,
        trains_network=True,
    ),
    "baseline": Method(
        "thoraclip.methods.baseline",
        "Fine-tune an image classifier, or a dual encoder's vision tower, end to end.",
        True,
        keeps_classifier=True,
        trains_network=True,
    ),
    "probe": Method(
        "thoraclip.methods.probe",
        "Fit a linear classifier on frozen image features.",
        True,
        keeps_classifier=True,
        fits_head=True,
        embeds=True,
        fit_seconds=5e-4,
    ),
    "trivial": Method(
        "thoraclip.methods.trivial",
        "Classify by what needs no medicine: the floor of every table.",
        True,
        inspects=True,
        fit_seconds=3e-3,
    ),
}


def find_method(kind: str) -> Method:
    """The method of a kind; raises ConfigError for an unknown one."""
    if kind not in METHODS:
        raise ConfigError(f"unknown method '{kind}'{did_you_mean(kind, METHODS)}")
    return METHODS[kind]


def require_shared_work(what: str) -> None:
    """Raise ConfigError where several processes were started for work that one does alone.

    Args:
        what: a method's kind, or the name of any other work.
    """
    shared = ["embed", *(kind for kind, method in METHODS.items() if method.trains_network)]
    if process_count() > 1 and what not in shared:
        raise ConfigError(
            f"{what} runs in one process, and {process_count()} were started; "
            f"only {', '.join(shared[:-1])} and {shared[-1]} share their work: start it without a launcher"
        )
