"""One supervised step over a batch, and the validation of the network that it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Batch
from thoraclip.methods.zeroshot import macro_f1
from thoraclip.models.augment import Augmentation, augment
from thoraclip.models.backbones import Backbone
from thoraclip.models.heads import log_loss, softmax
from thoraclip.runs import Progress

__all__ = ["SupervisedStep", "layer_groups", "scores_of"]

Rows = npt.NDArray[np.int64]
_SCORING_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class SupervisedStep:
    """A classifier under (weighted, smoothed, mixed) cross-entropy; what has no gradient is not trained.

    Args:
        backbone: the network.
        greys: u8[N, S, S], the images of the manifest, on disk.
        targets: i64[N] classes, -1 where unknown.
        weight: f64[C], weight of each class in the loss.
        group: the processes.
        head_alone: the network stays as it scores, without dropout; its head is trained.
        follows_batches: batch normalisation uses, and keeps, the statistics of each batch.
        chunk_size: images per forward pass.
        label_smoothing: share of every target that is spread over all classes.
        mixup: alpha of the beta distribution that pairs of images are mixed by; 0 mixes none.
        augmentation: how the images of a batch are changed; `None` leaves them.
        seed: of the augmentation, the mixing and the network's own dropout.
    """

    backbone: Backbone
    greys: npt.NDArray[np.uint8]
    targets: Rows
    weight: npt.NDArray[np.float64]
    group: ProcessGroup
    head_alone: bool
    follows_batches: bool
    chunk_size: int
    label_smoothing: float
    mixup: float
    augmentation: Augmentation | None
    seed: int

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Those that are trained, by name."""
        return {n: p for n, p in self.backbone.network.named_parameters() if p.requires_grad}

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Every tensor that a step changes: the parameters, and the statistics of batch normalisation."""
        return {**self.parameters, **(self.backbone.running_statistics if self.follows_batches else {})}

    def backward(self, batch: Batch) -> float:
        """Add the gradients of the batch's loss; over the chunks and processes they are those of one pass."""
        device = self.backbone.device
        weight = torch.from_numpy(self.weight).float().to(device)
        self._train_mode()
        share, partner = self._mixing(batch)
        target = self._soft_targets(batch.rows)
        target = share[:, None] * target + (1 - share[:, None]) * target[partner]
        total = (target * weight).sum()
        own, real = self.group.own(len(batch.rows))
        value = 0.0
        for chunk in torch.split(own[:real], self.chunk_size) if real else ():
            at = chunk.numpy()
            pixels = self._pixels(batch, at)
            if self.mixup:
                part = share[chunk.to(device), None, None, None]
                pixels = part * pixels + (1 - part) * self._pixels(batch, partner.cpu().numpy()[at])
            with _stream_of(self.seed, batch.step, int(at[0]), device=device):
                likelihood = self.backbone.logits(pixels).log_softmax(dim=-1)
            loss = -(target[chunk.to(device)] * weight * likelihood).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        self.group.combine(self.parameters.values(), ())
        return self.group.total(value)

    def validate(self, rows: Rows) -> dict[str, float]:
        """Accuracy, macro F1 and log-loss on the validation images, each process scoring its share."""
        own, _ = self.group.own(len(rows))
        mine = torch.from_numpy(scores_of(self.backbone, self.greys, rows[own.numpy()])).float()
        scores = self.group.gather(mine.to(self.backbone.device), len(rows)).cpu().double().numpy()
        target, predicted = self.targets[rows], scores.argmax(axis=1)
        return {
            "val_accuracy": float((target == predicted).mean()),
            "val_macro_f1": macro_f1(target, predicted, len(self.backbone.labels)),
            "val_log_loss": log_loss(scores, target),
        }

    def _train_mode(self) -> None:
        """Dropout on and, unless frozen, batch normalisation by the batch; a frozen network stays as it scores."""
        network = self.backbone.network
        network.train(not self.head_alone)
        if not self.follows_batches:
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _pixels(self, batch: Batch, at: Rows) -> Tensor:
        """f32[b, 3, S, S] of some places of the batch, augmented by their samples."""
        images = torch.from_numpy(np.array(self.greys[batch.rows[at]])).to(self.backbone.device)
        if self.augmentation:
            samples = batch.samples[at].tolist()
            images = augment(images, self.augmentation, seed=self.seed, step=batch.step, samples=samples)
        return self.backbone.expand(images)

    def _soft_targets(self, rows: Rows) -> Tensor:
        """f32[B, C]: 1 - e at the class and e / C everywhere (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
        classes, smooth = len(self.backbone.labels), self.label_smoothing
        hard = nn.functional.one_hot(torch.from_numpy(self.targets[rows]), classes).float()
        return (hard * (1 - smooth) + smooth / classes).to(self.backbone.device)

    def _mixing(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(f32[B] share of the image itself, i64[B] its partner): mixup (Zhang et al. 2018, arXiv:1710.09412)."""
        size, device = len(batch.rows), self.backbone.device
        if not self.mixup:
            return torch.ones(size, device=device), torch.arange(size, device=device)
        drawn = np.random.Generator(np.random.Philox(key=[self.seed, batch.step], counter=[0, 0, 2, 0]))
        partner = drawn.permutation(size)
        share = drawn.beta(self.mixup, self.mixup, size).astype(np.float32)
        return torch.from_numpy(share).to(device), torch.from_numpy(partner).to(device)


def layer_groups(
    backbone: Backbone, parameters: Mapping[str, nn.Parameter], *, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The optimizer's groups: the share of the learning rate falls with the distance from the head.

    share = decay^(top - depth), as in ELECTRA (Clark et al. 2020, arXiv:2003.10555, appendix A) and BEiT (Bao et al.
    2021, arXiv:2106.08254); depth as in `Backbone.depths`. Only tensors of two dimensions or more have weight decay.
    """
    depths = backbone.depths(list(parameters))
    top = max(depths)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for depth, parameter in zip(depths, parameters.values(), strict=True):
        decays = parameter.dim() > 1
        group = {"params": [], "share": decay ** (top - depth), "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((depth, decays), group)["params"].append(parameter)
    return list(groups.values())


@torch.inference_mode()
def scores_of(
    backbone: Backbone, greys: npt.NDArray[np.uint8], rows: Rows, *, progress: Progress | None = None
) -> npt.NDArray[np.float64]:
    """f64[R, C] of some images u8[N, S, S]; each row sums to 1."""
    backbone.network.eval()
    made = []
    for at in range(0, len(rows), _SCORING_BATCH):
        pixels = backbone.expand(np.array(greys[rows[at : at + _SCORING_BATCH]]))
        made.append(backbone.logits(pixels).cpu().double().numpy())
        if progress:
            progress(min(at + _SCORING_BATCH, len(rows)), len(rows))
    return softmax(np.concatenate(made))


@contextmanager
def _stream_of(*numbers: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random stream as a function of some numbers, for a network's own dropout; given back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield
