"""One round of fine-tuning: what the loop trains, and the adapters that it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from thoraclip.labels import load_prompts
from thoraclip.methods.contrast import Contrast
from thoraclip.methods.losses import LOSSES
from thoraclip.methods.pairs import CaptionTexts, PairTexts, PromptTexts
from thoraclip.methods.rounds import Round
from thoraclip.methods.training import Batch, Progressing
from thoraclip.models.adapter_note import read_note
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.heads import class_weights
from thoraclip.models.lora import TunableEncoder, add_lora
from thoraclip.tables.captions import append_label, read_captions

if TYPE_CHECKING:
    from thoraclip.methods.finetune import Config

__all__ = ["Tuning", "TuningRound", "optimizer_of"]


@dataclass(frozen=True)
class TuningRound(Round):
    """The training of one adapter."""

    validated: ClassVar[str] = "zero-shot"

    @cached_property
    def prompts(self) -> list[tuple[str, ...]]:
        """The prompts of each class."""
        prompts = load_prompts(self.config.prompts)
        return [prompts.for_class(name) for name in self.labels.names]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the best adapter's note says."""
        note = read_note(self.folder / "adapter")
        return note.facts if note else {}

    def prepare(self) -> Tuning:
        """Encoder with LoRA, pictures and texts; what is wrong with a setting is found here."""
        config, rows = self.config, self.part.train
        texts = self._texts()
        encoder = load_dual_encoder(
            config.model, geometry=config.geometry, precision=config.precision, device=str(self.group.device)
        )
        tuned = add_lora(
            encoder, config, seed=config.seed, train_scale=config.train_logit_scale, train_bias=LOSSES[config.loss].has_bias,
            checkpointing=config.gradient_checkpointing,
        )  # fmt: skip
        weight = class_weights(self.targets[rows], len(self.labels), config.class_weight)
        greys = self.shared_pictures(encoder.preprocess)
        return Tuning(self, Contrast(config, tuned, greys, self.targets, weight, texts, self.group))

    def _texts(self) -> PairTexts:
        manifest, rows = self.context.manifest, self.part.train
        if not self.config.captions:
            return PromptTexts.of(self.prompts)
        captions = read_captions(Path(self.config.captions))
        texts = captions.texts_for(manifest, rows)
        if self.config.append_label:
            names = [self.labels.names[target] for target in self.targets[rows]]
            told = captions.labelled_for(manifest, rows)
            texts = [t if has else append_label(t, name) for t, name, has in zip(texts, names, told, strict=True)]
        return CaptionTexts.of(rows.tolist(), texts)

    def keep(self, tuned: TunableEncoder, done: Progressing) -> None:
        """Write metrics, figure, last and best adapter; the best one comes last and marks the end."""
        self.keep_curve(done)
        loss = {"loss": self.config.loss}
        tuned.save(self.folder / "last", self.note(done, done.step) | loss)
        if done.best:
            tuned.restore(done.best)
        tuned.save(self.folder / "adapter", self.note(done, done.kept_step) | loss)


class Tuning:
    """A `Trainee`: LoRA under a contrastive loss, validated as it will score.

    Args:
        one: the round.
        contrast: a step.
    """

    def __init__(self, one: TuningRound, contrast: Contrast) -> None:
        self._one, self._config, self.contrast = one, one.config, contrast
        self.optimizer = optimizer_of(one.config, contrast.tuned)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """LoRA's, the projections' and the loss's own."""
        return self.contrast.tuned.parameters

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The parameters: the frozen base counts nothing."""
        return self.parameters

    def backward(self, batch: Batch) -> float:
        """See `Contrast.backward`."""
        return self.contrast.backward(batch)

    def after_step(self) -> Mapping[str, float]:
        """The logit scale, within its bound."""
        return {"logit_scale": self.contrast.tuned.clamp_scale(self._config.logit_scale_max)}

    def validate(self) -> Mapping[str, float]:
        """Zero-shot on the validation images, and a probe where that chooses."""
        contrast, part = self.contrast, self._one.part
        values = contrast.validate(part.val, self._one.prompts)
        if self._config.select == "probe":
            values |= contrast.validate_probe(part.train, part.val, self._one.labels)
        if LOSSES[self._config.loss].has_bias and contrast.tuned.bias == 0:
            # before the first step: begin where the mean logit is zero, not deep in saturation
            contrast.tuned.centre_bias(self._one.group.first(values["val_mean_cosine"]))
        return values

    def criterion(self, values: Mapping[str, float]) -> float | None:
        """Macro F1 of what `select` names."""
        names = {"zeroshot": "val_macro_f1", "probe": "val_probe_macro_f1"}
        return values[names[self._config.select]] if self._config.select in names else None


def optimizer_of(config: Config, tuned: TunableEncoder) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); the loss's own two numbers do not decay."""
    groups: Sequence[dict[str, Any]] = [
        {"params": list(tuned.encoder_parameters.values()), "weight_decay": config.weight_decay},
        {"params": list(tuned.loss_parameters.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)
