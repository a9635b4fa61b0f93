"""`finetune`: LoRA on a dual encoder, with a contrastive loss over batches of any size.

    step -> batch (rows) -+-> pixels, augmented once -> vision tower --+
                          +-> texts, each different one once -> text tower -+-> loss over the whole batch (gradcache)

Scored zero-shot with the best adapter by validation; `probe` takes the run folder as its adapter. Everything random is a
function of (seed, step, sample), so neither the chunk size, nor the number of processes, nor a resumed run changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ConfigError
from thoraclip.labels import LabelSet, load_prompts
from thoraclip.methods import losses
from thoraclip.methods.encoders import EncoderConfig, ModelConfig
from thoraclip.methods.rounds import Result, fit, run_rounds
from thoraclip.methods.running import Context
from thoraclip.methods.training import TrainingSettings, require_known, require_positive
from thoraclip.methods.tuning import TuningRound
from thoraclip.methods.zeroshot import prompted_classifier, prompts_digest, score_images
from thoraclip.models.lora import LoraSettings
from thoraclip.runs import file_sha256, fold_folder

if TYPE_CHECKING:
    from thoraclip.models.classifiers import EncoderClassifier

__all__ = ["Config", "run"]

_SELECTIONS = ("zeroshot", "probe", "last")


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, LoraSettings, TrainingSettings):
    """What one fine-tuning needs."""

    captions: str = ""
    """Caption file, see thoraclip caption; empty: the text of an image is the mean vector of its class's prompts."""
    append_label: bool = False
    """Append the class name to the captions of the training images, as the reference study did."""
    prompts: str = "chest-xray-ensemble"
    """Prompt set that scores, and that is trained on where there are no captions."""
    loss: str = "unicl"
    """unicl, infonce, siglip (with labels), or prompt_ce (cross-entropy over class prompts)."""
    batch_size: int = 256
    """Pairs per optimizer step; the loss sees all of them."""
    chunk_size: int = 32
    """Pairs per forward pass. Memory only: results do not depend on it."""
    learning_rate: float = 3e-4
    """Peak of AdamW's step size."""
    weight_decay: float = 0.01
    """AdamW's, on LoRA and projections."""
    train_logit_scale: bool = True
    """Whether the logit scale is trained; it never exceeds logit_scale_max."""
    logit_scale_max: float = 100.0
    """Upper bound of a trained logit scale (Radford et al. 2021, section 2.5)."""
    class_weight: str = "none"
    """none or balanced: whether pairs of rare classes weigh more in the loss."""
    select: str = "zeroshot"
    """Which adapter is kept as the best: by validation macro F1 of zeroshot or of a probe; or the last one."""

    def __post_init__(self) -> None:
        LoraSettings.__post_init__(self)
        TrainingSettings.__post_init__(self)
        require_known(self, loss=tuple(losses.LOSSES), select=_SELECTIONS)
        require_positive(logit_scale_max=self.logit_scale_max)
        if self.append_label and not self.captions:
            raise ConfigError("append_label = true needs captions = FILE; class prompts name the class already")
        if self.captions and losses.LOSSES[self.loss].on_prompts:
            raise ConfigError(
                f"loss = '{self.loss}' trains on class prompts; leave captions out, or choose another loss"
            )

    def inputs(self) -> dict[str, str]:
        """Model, prompts and captions as they are now."""
        read = {"prompts": prompts_digest(self.prompts)}
        if self.captions and Path(self.captions).is_file():
            read["captions"] = file_sha256(Path(self.captions))
        return super().inputs() | read


def run(config: Config, context: Context) -> Result | None:
    """Tune one adapter per fold (or one for the split), score its test images zero-shot, pool.

    Returns:
        As every method; `None` in all but the first of several processes.
    """
    result = run_rounds("finetune", config, context, TuningRound, train=_train, score=_score)
    if result is not None:
        result[1]["prompt_set"] = load_prompts(config.prompts).name
    return result


def _train(one: TuningRound) -> None:
    """From the checkpoint, if there is one, to `adapter/`, `last/`, `metrics.jsonl` and `training.svg`."""
    sampler = one.sampler()
    tuning = one.prepare()
    done = fit(one, tuning, sampler)
    if one.group.is_main:
        one.keep(tuning.contrast.tuned, done)


def _score(one: TuningRound) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The test and the validation rows, zero-shot with the adapter that was kept."""
    config: Config = one.config
    scores = score_images(_tuned(config, one.folder), one.labels, load_prompts(config.prompts), one.context).scores
    return scores[one.part.test], scores[one.part.val]


def _tuned(config: Config, place: Path) -> EncoderConfig:
    return EncoderConfig(
        model=config.model, adapter=str(place / "adapter"), geometry=config.geometry, precision=config.precision
    )


def load_classifier(config: Config, folder: Path, fold: int | None, labels: LabelSet) -> EncoderClassifier:
    """The base with the adapter of the fold, and the class prompts as its head."""
    return prompted_classifier(_tuned(config, fold_folder(folder, fold)), config.prompts, labels)
