"""One round of fine-tuning: what the loop is given, what it keeps, and what it says when it cannot go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from thoraclip.data.batches import pixel_cache
from thoraclip.errors import InputError, TrainingError
from thoraclip.judge.figures import training_figure
from thoraclip.labels import LabelSet, load_prompts
from thoraclip.methods.contrast import Contrast
from thoraclip.methods.pairs import CaptionTexts, PairTexts, PromptTexts
from thoraclip.methods.processes import ProcessGroup
from thoraclip.methods.running import Context, Part
from thoraclip.methods.training import Batch, Progressing, Sampler
from thoraclip.models.adapter import read_note
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.heads import class_weights
from thoraclip.models.lora import TunableEncoder, add_lora
from thoraclip.runs import canonical_json, digest, write_text
from thoraclip.tables.captions import append_label, read_captions

if TYPE_CHECKING:
    from thoraclip.methods.finetune import Config

__all__ = ["Round", "optimizer_of"]


@dataclass(frozen=True)
class Round:
    """The training of one adapter.

    Args:
        config: of the fine-tuning.
        context: of the run.
        part: its training, validation and test rows.
        labels: the classes.
        group: the processes.
    """

    config: Config
    context: Context
    part: Part
    labels: LabelSet
    group: ProcessGroup

    @property
    def folder(self) -> Path:
        """Of this round's files: the run folder, or one in it for each fold."""
        return self.context.folder.path / ("" if self.part.fold is None else f"fold-{self.part.fold}")

    @property
    def token(self) -> str:
        """Equal for rounds that must end with the same weights."""
        return digest([self.context.fingerprint, self.part.fold])

    @cached_property
    def targets(self) -> npt.NDArray[np.int64]:
        """i64[N]: the class of every row of the manifest, -1 where unknown."""
        return self.context.manifest.targets(self.labels)

    @cached_property
    def prompts(self) -> list[tuple[str, ...]]:
        """The prompts of each class."""
        prompts = load_prompts(self.config.prompts)
        return [prompts.for_class(name) for name in self.labels.names]

    @property
    def is_trained(self) -> bool:
        """True where the adapter of this very round is there."""
        try:
            return bool(self.facts.get("token") == self.token)
        except InputError:
            return False

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the best adapter's note says."""
        note = read_note(self.folder / "adapter")
        return note.facts if note else {}

    @property
    def metrics(self) -> list[Mapping[str, object]]:
        """The rows of `metrics.jsonl`, with the fold."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{"fold": self.part.fold, **json.loads(line)} for line in lines]

    def prepare(self) -> tuple[Contrast, Sampler]:
        """Encoder with LoRA, pictures, texts, and the order of the samples; what is wrong with a setting is found here."""
        config, rows = self.config, self.part.train
        sampler = Sampler(
            rows, self.targets[rows], total=len(self.targets), batch_size=config.batch_size, sampling=config.sampling,
            seed=config.seed,
        )  # fmt: skip
        texts = self._texts()
        encoder = load_dual_encoder(
            config.model, geometry=config.geometry, precision=config.precision, device=str(self.group.device)
        )
        tuned = add_lora(
            encoder, config, seed=config.seed, train_scale=config.train_logit_scale, train_bias=config.loss == "siglip",
            checkpointing=config.gradient_checkpointing,
        )  # fmt: skip
        weight = class_weights(self.targets[rows], len(self.labels), config.class_weight)
        return Contrast(config, tuned, self._pictures(encoder), self.targets, weight, texts, self.group), sampler

    def _pictures(self, encoder: DualEncoder) -> npt.NDArray[np.uint8]:
        """u8[N, S, S] from the pixel cache, which the first process makes."""
        folder = self.context.pixels or self.context.folder.path / "pixels"
        if not self.group.is_main:
            self.group.wait()
        cache = pixel_cache(self.context.manifest, encoder.preprocess, folder, progress=self.context.progress)
        if self.group.is_main:
            self.group.wait()
        return cache.pixels

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

    def validate(self, contrast: Contrast, done: Progressing) -> None:
        """Add a row of validation values, and keep the tensors where they are the best so far."""
        select = self.config.select
        values = contrast.validate(self.part.val, self.prompts)
        if select == "probe":
            values |= contrast.validate_probe(self.part.train, self.part.val, self.labels)
        values = {name: self.group.first(value) for name, value in values.items()}
        done.rows.append({"step": done.step, **values})
        self.track(done)
        if select != "last":
            value = values["val_probe_macro_f1" if select == "probe" else "val_macro_f1"]
            done.note(value, contrast.tuned.snapshot() if value > done.best_value else {})

    def track(self, done: Progressing) -> None:
        """Tell the trackers the newest row, under names of its own where several folds go to one tracker."""
        where = "" if self.part.fold is None else f"fold-{self.part.fold}/"
        values = {f"{where}{name}": value for name, value in done.rows[-1].items() if name != "step"}
        self.group.track(values=values, step=done.step)

    def require_finite(self, loss: float, norm: float, batch: Batch, done: Progressing, save: Any) -> None:
        """Stop where a loss or a gradient is not finite: keep the last good weights and say which batch spoilt them.

        Args:
            loss, norm: of this step.
            batch: the step's.
            done: up to the step before.
            save: writes the checkpoint.

        Raises:
            TrainingError: one of them is not finite.
        """
        if np.isfinite(loss) and np.isfinite(norm):
            return
        path = save()
        self.group.wait()
        ids = self.context.manifest.column("image_id")
        what = f"the loss is {loss}" if not np.isfinite(loss) else "a gradient is not finite"
        raise TrainingError(
            f"step {batch.step + 1}: {what}, in the batch of {len(batch.rows)} images that begins with "
            f"'{ids[batch.rows[0]]}'; the weights of step {done.step} are kept in {path}; lower learning_rate = "
            f"{self.config.learning_rate:g}, or set precision = fp32"
        )

    def keep(self, tuned: TunableEncoder, done: Progressing) -> None:
        """Write metrics, figure, last and best adapter; the best one comes last and marks the end."""
        best_step = done.best_step if done.best else done.step
        write_text(self.folder / "metrics.jsonl", "".join(canonical_json(row) + "\n" for row in done.rows))
        write_text(self.folder / "training.svg", training_figure(done.rows, best_step=best_step))
        tuned.save(self.folder / "last", self._note(done, done.step))
        if done.best:
            tuned.restore(done.best)
        tuned.save(self.folder / "adapter", self._note(done, best_step))

    def _note(self, done: Progressing, step: int) -> dict[str, Any]:
        contents = self.context.manifest.column("sha256")
        validations = {row["step"]: row for row in done.rows if "val_macro_f1" in row}
        return {
            "token": self.token,
            "fold": self.part.fold,
            "loss": self.config.loss,
            "batch_size": self.config.batch_size,
            "steps": done.step,
            "step": step,
            "validation": validations.get(step),
            "trained_on": sorted(contents[row] for row in self.part.train),
            "chosen_on": sorted(contents[row] for row in self.part.val),
        }


def optimizer_of(config: Config, tuned: TunableEncoder) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); the loss's own two numbers do not decay."""
    groups: Sequence[dict[str, Any]] = [
        {"params": list(tuned.encoder_parameters.values()), "weight_decay": config.weight_decay},
        {"params": list(tuned.loss_parameters.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)
