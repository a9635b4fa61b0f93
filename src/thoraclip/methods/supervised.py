"""One supervised step over a batch, and the validation of the network that it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from thoraclip.methods.processes import ProcessGroup
from thoraclip.methods.training import Batch
from thoraclip.methods.zeroshot import macro_f1
from thoraclip.models.augment import augment
from thoraclip.models.backbones import Backbone
from thoraclip.models.heads import log_loss, softmax
from thoraclip.models.recompute import recompute_layers
from thoraclip.runs import Progress

if TYPE_CHECKING:
    from thoraclip.methods.baseline import Config

__all__ = ["Supervised", "layer_groups", "scores_of"]

Rows = npt.NDArray[np.int64]
_SCORING_BATCH = 64


class Supervised:
    """A `Trainee`: a classifier under (weighted, smoothed, mixed) cross-entropy.

    Args:
        config: of the baseline.
        backbone: the network.
        greys: u8[N, S, S], the pictures of the manifest, on disk.
        targets: i64[N] classes, -1 where unknown.
        weight: f64[C], weight of each class in the loss.
        val: i64[V] rows that choose the weights.
        group: the processes.
    """

    def __init__(
        self, config: Config, backbone: Backbone, greys: npt.NDArray[np.uint8], targets: Rows,
        weight: npt.NDArray[np.float64], val: Rows, group: ProcessGroup,
    ) -> None:  # fmt: skip
        self.backbone, self._config, self._greys, self._targets = backbone, config, greys, targets
        self._val, self._group = val, group
        self._weight = torch.from_numpy(weight).float().to(backbone.device)
        if config.train == "head":
            heads = backbone.head_parameters
            for name, parameter in backbone.network.named_parameters():
                parameter.requires_grad_(name in heads)
        if config.gradient_checkpointing:
            recompute_layers(backbone.network, backbone.name)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            layer_groups(backbone, self.parameters, decay=config.layer_decay, weight_decay=config.weight_decay),
            lr=config.learning_rate,
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Those that are trained, by name."""
        return {n: p for n, p in self.backbone.network.named_parameters() if p.requires_grad}

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The parameters that are trained, and what batch normalisation has seen."""
        moving = self.backbone.running_statistics if self._follows_batches else {}
        return {**self.parameters, **moving}

    @property
    def _follows_batches(self) -> bool:
        return self._config.train == "all" and self._config.batch_norm == "batch"

    def backward(self, batch: Batch) -> float:
        """Add the gradients of the batch's loss; over the chunks and processes they are those of one pass."""
        config, device = self._config, self.backbone.device
        self._train_mode()
        share, partner = self._mixing(batch)
        target = self._soft_targets(batch.rows)
        target = share[:, None] * target + (1 - share[:, None]) * target[partner]
        total = (target * self._weight).sum()
        own, real = self._group.own(len(batch.rows))
        value = 0.0
        for chunk in torch.split(own[:real], config.chunk_size) if real else ():
            at = chunk.numpy()
            pixels = self._pixels(batch, at)
            if config.mixup:
                part = share[chunk.to(device), None, None, None]
                pixels = part * pixels + (1 - part) * self._pixels(batch, partner.cpu().numpy()[at])
            with _stream_of(config.seed, batch.step, int(at[0]), device=device):
                likelihood = self.backbone.logits(pixels).log_softmax(dim=-1)
            loss = -(target[chunk.to(device)] * self._weight * likelihood).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        self._group.combine(self.parameters.values(), ())
        return self._group.total(value)

    def after_step(self) -> Mapping[str, float]:
        """Nothing is left to do."""
        return {}

    def validate(self) -> Mapping[str, float]:
        """Accuracy, macro F1 and log-loss on the validation images, each process scoring its share."""
        own, _ = self._group.own(len(self._val))
        mine = torch.from_numpy(scores_of(self.backbone, self._greys, self._val[own.numpy()])).float()
        scores = self._group.gather(mine.to(self.backbone.device), len(self._val)).cpu().double().numpy()
        target, predicted = self._targets[self._val], scores.argmax(axis=1)
        return {
            "val_accuracy": float((target == predicted).mean()),
            "val_macro_f1": macro_f1(target, predicted, len(self.backbone.labels)),
            "val_log_loss": log_loss(scores, target),
        }

    def criterion(self, values: Mapping[str, float]) -> float | None:
        """What `select` names, the higher, the better."""
        known = {"macro_f1": values["val_macro_f1"], "log_loss": -values["val_log_loss"]}
        return known.get(self._config.select)

    def _train_mode(self) -> None:
        """Dropout on and, unless frozen, batch normalisation by the batch; a frozen network stays as it scores."""
        network = self.backbone.network
        network.train(self._config.train == "all")
        if not self._follows_batches:
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _pixels(self, batch: Batch, at: Rows) -> Tensor:
        """f32[b, 3, S, S] of some places of the batch, augmented by their samples."""
        pictures = torch.from_numpy(np.array(self._greys[batch.rows[at]])).to(self.backbone.device)
        if self._config.augmentation:
            samples = batch.samples[at].tolist()
            pictures = augment(pictures, self._config, seed=self._config.seed, step=batch.step, samples=samples)
        return self.backbone.expand(pictures)

    def _soft_targets(self, rows: Rows) -> Tensor:
        """f32[B, C]: 1 - e at the class and e / C everywhere (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
        classes, smooth = len(self.backbone.labels), self._config.label_smoothing
        hard = nn.functional.one_hot(torch.from_numpy(self._targets[rows]), classes).float()
        return (hard * (1 - smooth) + smooth / classes).to(self.backbone.device)

    def _mixing(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(f32[B] share of the image itself, i64[B] its partner): mixup (Zhang et al. 2018, arXiv:1710.09412)."""
        size, device = len(batch.rows), self.backbone.device
        if not self._config.mixup:
            return torch.ones(size, device=device), torch.arange(size, device=device)
        drawn = np.random.Generator(np.random.Philox(key=[self._config.seed, batch.step], counter=[0, 0, 2, 0]))
        partner = drawn.permutation(size)
        share = drawn.beta(self._config.mixup, self._config.mixup, size).astype(np.float32)
        return torch.from_numpy(share).to(device), torch.from_numpy(partner).to(device)


def layer_groups(
    backbone: Backbone, parameters: Mapping[str, nn.Parameter], *, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The optimizer's groups: the share of the learning rate falls with the distance from the head.

    share = decay^(top - depth), as in ELECTRA (Clark et al. 2020, arXiv:2003.10555, appendix A) and BEiT (Bao et al. 2021,
    arXiv:2106.08254); depth as in `Backbone.depths`. Only tensors of two dimensions or more have weight decay.
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
    """f64[R, C] of some pictures u8[N, S, S]; each row sums to 1."""
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
