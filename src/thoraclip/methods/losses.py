"""The losses of fine-tuning, as pure functions of representations.

Notation: z_i unit vector of image i, t_j of text j, s the logit scale, l_ij = s z_i . t_j, y_i the class of pair i, B
pairs. Chest X-rays have few classes, so about 1/C of the pairs that plain InfoNCE pushes apart share their class; UniCL
and SigLIP with labels know it, and the cross-entropy over class prompts has no such pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid

__all__ = ["LOSSES", "Loss", "Pairs", "class_means", "infonce", "prompt_cross_entropy", "siglip", "supcon", "unicl"]


@dataclass(frozen=True)
class Pairs:
    """What a loss may read."""

    image: Tensor  # unit vectors, f32[B, P]; of a loss with a head its logits, f32[B, C]
    # unit vectors: f32[B, P], the text of each image; of a loss on prompts f32[K, P], of all; without texts `image`
    text: Tensor
    scale: Tensor  # positive scalar, the inverse temperature
    bias: Tensor  # scalar that is added to the logits; trained where the loss needs one
    target: Tensor  # i64[B], the class of each image
    classes: Tensor | None = None  # i64[K], the class of each prompt, of a loss on prompts
    weight: Tensor | None = None  # f32[B], mean 1; `None` for equal ones


@dataclass(frozen=True)
class Loss:
    """One entry of `LOSSES`."""

    value: Callable[[Pairs], Tensor]  # `Pairs` -> scalar loss in nats
    has_bias: bool = False  # the logit bias is trained
    on_prompts: bool = False  # it compares every image with the prompts of all classes, so captions cannot be used
    reads_texts: bool = True  # it compares images with texts; else a vision tower alone is tuned
    has_head: bool = False  # it reads the logits of a linear head on the pooled features, which is trained along

    @property
    def takes_captions(self) -> bool:
        """True where every image may have a text of its own."""
        return self.reads_texts and not self.on_prompts


def infonce(image: Tensor, text: Tensor, scale: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE over a batch of pairs (Radford et al. 2021, arXiv:2103.00020, fig. 3).

    -1/2B sum_i [log softmax_j(l_i.)_i + log softmax_j(l_.i)_i]

    Args:
        image: unit vectors, f32[B, P].
        text: unit vectors, f32[B, P]; row i belongs to row i of `image`.
        scale: positive scalar s, the inverse temperature.
        weight: f32[B] of the pairs, mean 1; `None` for equal ones.

    Returns:
        Scalar loss in nats, the mean of both directions.
    """
    logits = scale * image @ text.T
    own = torch.arange(len(image), device=image.device)
    both = cross_entropy(logits, own, reduction="none") + cross_entropy(logits.T, own, reduction="none")
    return _mean(both, weight) / 2


def unicl(image: Tensor, text: Tensor, scale: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Label-aware contrast: all pairs of one class are positives (Yang et al. 2022, arXiv:2204.03610, eq. 2-4).

    Cross-entropy to the targets 1[y_i = y_j] / n(y_i), in both directions; with B different classes it is InfoNCE.

    Args:
        image, text, scale, weight: as in `infonce`.
        target: i64[B], the class of each pair.

    Returns:
        Scalar loss in nats, the mean of both directions.
    """
    logits = scale * image @ text.T
    same = (target[:, None] == target[None, :]).to(logits.dtype)
    same = same / same.sum(dim=1, keepdim=True)
    both = -(same * log_softmax(logits, dim=1)).sum(dim=1) - (same * log_softmax(logits.T, dim=1)).sum(dim=1)
    return _mean(both, weight) / 2


def siglip(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, target: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Sigmoid loss over all pairs (Zhai et al. 2023, arXiv:2303.15343, eq. 1), with labels in place of identity.

    -1/B sum_ij log sigmoid(m_ij (l_ij + b)), m_ij = +1 where y_i = y_j, else -1.

    Args:
        image, text, scale, weight: as in `infonce`.
        bias: scalar b.
        target: i64[B], the class of each pair; B different numbers give the loss of the paper.

    Returns:
        Scalar loss in nats an image.
    """
    logits = scale * image @ text.T + bias
    sign = 2 * (target[:, None] == target[None, :]).to(logits.dtype) - 1
    return _mean(-logsigmoid(sign * logits).sum(dim=1), weight)


def prompt_cross_entropy(
    image: Tensor, prompt: Tensor, scale: Tensor, target: Tensor, classes: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the zero-shot classifier itself, over class prompts (Zanella & Ben Ayed 2024, arXiv:2405.18541).

    A class's vector is the unit vector of the mean of its prompts' (Radford et al. 2021, section 3.1.4), as in scoring.

    Args:
        image, scale, weight: as in `infonce`.
        prompt: unit vectors, f32[K, P].
        target: i64[B], the class of each image, 0..C-1.
        classes: i64[K], the class of each prompt; every class has one or more.

    Returns:
        Scalar loss in nats.
    """
    vectors = class_means(prompt, classes)
    return _mean(cross_entropy(scale * image @ vectors.T, target, reduction="none"), weight)


def supcon(image: Tensor, scale: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362, eq. 2, L_out), each image in one view.

    -1/|P_i| sum_{j in P_i} log( exp(s z_i . z_j) / sum_{k != i} exp(s z_i . z_k) ), P_i the other images of class y_i;
    the mean over the images that have such others. 0 where none has.

    Args:
        image, scale, weight: as in `infonce`.
        target: i64[B], the class of each image.

    Returns:
        Scalar loss in nats.
    """
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    logits = (scale * image @ image.T).masked_fill(own, -1e9)  # exp gives 0, and no NaN where there is one image
    positive = ((target[:, None] == target[None, :]) & ~own).to(logits.dtype)
    count = positive.sum(dim=1)
    values = -(positive * log_softmax(logits, dim=1)).sum(dim=1) / count.clamp(min=1)
    return (values if weight is None else weight * values).sum() / (count > 0).sum().clamp(min=1)


def class_means(prompt: Tensor, classes: Tensor) -> Tensor:
    """Unit vectors f32[K, P] and their classes i64[K] -> f32[C, P], the unit vector of each class's mean."""
    member = torch.nn.functional.one_hot(classes, int(classes.max()) + 1).T.to(prompt.dtype)
    sums = member @ prompt
    vectors: Tensor = sums / sums.norm(dim=1, keepdim=True)
    return vectors


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.mean() if weight is None else (weight * values).mean()


def _on_prompts(pairs: Pairs) -> Tensor:
    assert pairs.classes is not None, "the step gives the class of each prompt"
    return prompt_cross_entropy(pairs.image, pairs.text, pairs.scale, pairs.target, pairs.classes, weight=pairs.weight)


LOSSES: Mapping[str, Loss] = {
    "unicl": Loss(lambda p: unicl(p.image, p.text, p.scale, p.target, weight=p.weight)),
    "infonce": Loss(lambda p: infonce(p.image, p.text, p.scale, weight=p.weight)),
    "siglip": Loss(lambda p: siglip(p.image, p.text, p.scale, p.bias, p.target, weight=p.weight), has_bias=True),
    "prompt_ce": Loss(_on_prompts, on_prompts=True),
    "supcon": Loss(lambda p: supcon(p.image, p.scale, p.target, weight=p.weight), reads_texts=False),
    "cross_entropy": Loss(
        lambda p: _mean(cross_entropy(p.image, p.target, reduction="none"), p.weight), reads_texts=False, has_head=True
    ),
}
"""Name -> loss; the setting `loss` takes these names."""
