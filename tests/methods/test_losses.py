"""The losses against plain loops over i and j in float64, straight from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from torch import Tensor
from torch.nn.functional import normalize

from thoraclip.methods.losses import LOSSES, Pairs, infonce, prompt_cross_entropy, siglip, supcon, unicl

Case = dict[str, Tensor]
"""image, text, prompt: unit vectors in float64; logits of each image; scale, bias; target: class of each pair; classes: class of each prompt; weight."""


def of_head(logits: Tensor, target: Tensor, *, weight: Tensor | None) -> Tensor:
    nothing = torch.zeros(())
    return LOSSES["cross_entropy"].value(Pairs(logits, logits, nothing, nothing, target, weight=weight))


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "infonce": (infonce, ("image", "text", "scale")),
    "unicl": (unicl, ("image", "text", "scale", "target")),
    "siglip": (siglip, ("image", "text", "scale", "bias", "target")),
    "prompt_ce": (prompt_cross_entropy, ("image", "prompt", "scale", "target", "classes")),
    "supcon": (supcon, ("image", "scale", "target")),
    "cross_entropy": (of_head, ("logits", "target")),
}
CAPTIONED = ("infonce", "unicl", "siglip")


def make_case(
    seed: int, *, target: Sequence[int], classes: Sequence[int], width: int, scale: float, bias: float
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    drawn = {"image": len(target), "text": len(target), "prompt": len(classes)}
    case = {
        name: normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64))
        for name, rows in drawn.items()
    }
    numbers = {"scale": torch.tensor(scale).double(), "bias": torch.tensor(bias).double()}
    weight = 0.1 + torch.rand(len(target), generator=generator, dtype=torch.float64)
    logits = torch.randn(len(target), max(classes) + 1, generator=generator, dtype=torch.float64)
    numbers |= {"logits": scale * logits}
    return case | numbers | {"target": torch.tensor(target), "classes": torch.tensor(classes), "weight": weight}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 4))
    some = st.integers(0, count - 1)
    classes = [*range(count), *draw(st.lists(some, max_size=5))]
    return make_case(
        draw(st.integers(0, 2**32)), target=draw(st.lists(some, min_size=1, max_size=9)),
        classes=draw(st.permutations(classes)), width=draw(st.integers(2, 6)), scale=draw(st.floats(0.1, 100)),
        bias=draw(st.floats(-20, 5)),
    )  # fmt: skip


def loss(name: str, case: Case, *, weighted: bool = False) -> Tensor:
    function, names = FUNCTIONS[name]
    found = function(*(case[n] for n in names), weight=case["weight"] if weighted else None)
    assert found.shape == ()
    return found


def log_of_share(logits: Sequence[float], chosen: int) -> float:
    """log of exp(logits[chosen]) / sum of exp(logits), by the largest one so that nothing overflows."""
    top = max(logits)
    return logits[chosen] - top - math.log(sum(math.exp(v - top) for v in logits))


def slowly(name: str, case: Case, weight: Sequence[float]) -> float:
    """The mean of the images' terms, each with its weight."""
    size, scale, target = len(case["image"]), float(case["scale"]), case["target"].tolist()
    y = list(range(size)) if name == "infonce" else target
    logit = [[scale * float(z @ t) for t in case["text"]] for z in case["image"]]
    vectors = []
    for c in sorted(set(case["classes"].tolist())):
        own = [p for p, k in zip(case["prompt"], case["classes"].tolist(), strict=True) if k == c]
        vectors.append(sum(own) / math.sqrt(float(sum(own) @ sum(own))))
    total, counted = 0.0, size
    if name == "supcon":
        counted = max(1, sum(y.count(label) > 1 for label in y))
    for i in range(size):
        alike, term = [j for j in range(size) if y[j] == y[i]], 0.0
        if name == "prompt_ce":
            term = -log_of_share([scale * float(case["image"][i] @ v) for v in vectors], target[i])
        elif name == "cross_entropy":
            term = -log_of_share(case["logits"][i].tolist(), target[i])
        elif name == "supcon":
            others = [k for k in range(size) if k != i]
            near = [scale * float(case["image"][i] @ case["image"][k]) for k in others]
            for j in alike:
                term -= log_of_share(near, others.index(j)) / (len(alike) - 1) if j != i else 0
        elif name == "siglip":
            for j in range(size):
                x = (1 if j in alike else -1) * (logit[i][j] + float(case["bias"]))
                term += math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x
        else:
            for j in alike:
                term -= log_of_share(logit[i], j) / len(alike) / 2
                term -= log_of_share([logit[k][i] for k in range(size)], j) / len(alike) / 2
        total += weight[i] * term
    return total / counted


def test_every_loss_is_here() -> None:
    assert set(FUNCTIONS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@examples(80)
@given(case=cases(), weighted=st.booleans())
def test_a_loss_equals_its_formula_written_as_loops(name: str, weighted: bool, case: Case) -> None:
    expected = slowly(name, case, case["weight"].tolist() if weighted else [1.0] * len(case["image"]))
    assert float(loss(name, case, weighted=weighted)) == pytest.approx(expected, rel=1e-9, abs=1e-10)


def test_what_is_told_apart_costs_nothing_and_one_representation_for_all_costs_the_logarithm_of_the_batch() -> None:
    """Captions that only name three classes leave a batch of 80 a floor of 3.28 of these 4.38 nats (27, 27 and 26 alike)."""
    apart = torch.eye(4, dtype=torch.float64)
    case = make_case(0, target=range(4), classes=range(4), width=4, scale=1000, bias=-500)
    case |= {"image": apart, "text": apart, "prompt": apart, "logits": 1000 * apart}
    assert [float(loss(name, case)) for name in LOSSES] == pytest.approx([0] * len(LOSSES), abs=1e-12)
    case = make_case(0, target=[n % 3 for n in range(80)], classes=range(3), width=3, scale=100, bias=0)
    same, corners = case["text"][:1].expand(80, -1), torch.eye(3, dtype=torch.float64)[case["target"]]
    for rows, expected in ((same, math.log(80)), (corners, 3.28357)):
        case |= {"image": rows, "text": rows}
        assert [float(loss(name, case)) for name in ("infonce", "unicl")] == pytest.approx([expected] * 2, abs=5e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    case = make_case(5, target=[0, 1, 2, 0, 1, 0], classes=[0, 1, 2, 0, 0], width=4, scale=3, bias=-2)
    names = [n for n in FUNCTIONS[name][1] if case[n].is_floating_point()]
    inputs = [case[n].requires_grad_() for n in names]
    assert torch.autograd.gradcheck(
        lambda *given: loss(name, case | dict(zip(names, given, strict=True)), weighted=True), inputs
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_scale_of_a_hundred_stays_finite_in_fp32(name: str) -> None:
    case = make_case(2, target=[i % 3 for i in range(64)], classes=[0, 1, 2] * 3, width=8, scale=100, bias=-10)
    single = {n: value.float() if value.is_floating_point() else value for n, value in case.items()}
    assert float(loss(name, single)) == pytest.approx(float(loss(name, case)), rel=1e-5)


@pytest.mark.parametrize("name", CAPTIONED)
def test_a_loss_is_computed_where_its_vectors_are(name: str) -> None:
    """On `meta`, a device that computes shapes alone and takes no tensor of another one."""
    case = make_case(2, target=[0, 1, 0], classes=[0], width=2, scale=1, bias=0)
    assert loss(name, {n: value.to("meta") for n, value in case.items()}).device.type == "meta"
