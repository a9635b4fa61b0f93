"""The losses against plain loops over i and j in float64, straight from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from torch import Tensor

from thoraclip.methods.losses import LOSSES, infonce, prompt_cross_entropy, siglip, unicl

Array = npt.NDArray[np.float64]
FIELD_COUNTS = (27, 27, 26)
"""Images of three equally frequent classes in a batch of 80."""


@dataclass(frozen=True)
class Case:
    """A batch in float64: unit vectors, scale, bias, classes of the pairs, prompts with their classes, weights of mean 1."""

    image: Array
    text: Array
    prompt: Array
    scale: float
    bias: float
    target: list[int]
    classes: list[int]
    weight: list[float]


def units(rng: np.random.Generator, rows: int, width: int) -> Array:
    drawn = rng.normal(size=(rows, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch, width, count = draw(st.integers(1, 9)), draw(st.integers(2, 6)), draw(st.integers(1, 4))
    classes = [*range(count), *draw(st.lists(st.integers(0, count - 1), max_size=5))]
    weight = rng.uniform(0.1, 3, size=batch)
    return Case(
        image=units(rng, batch, width),
        text=units(rng, batch, width),
        prompt=units(rng, len(classes), width),
        scale=draw(st.floats(0.1, 100)),
        bias=draw(st.floats(-20, 5)),
        target=draw(st.lists(st.integers(0, count - 1), min_size=batch, max_size=batch)),
        classes=draw(st.permutations(classes)),
        weight=(weight / weight.mean()).tolist(),
    )


def log_of_share(logits: Sequence[float], chosen: int) -> float:
    """log of exp(logits[chosen]) / sum of exp(logits), by the largest one so that nothing overflows."""
    top = max(logits)
    return logits[chosen] - top - math.log(sum(math.exp(v - top) for v in logits))


def slow_infonce(case: Case, weight: Sequence[float]) -> float:
    return slow_unicl(case, weight, target=range(len(case.image)))


def slow_unicl(case: Case, weight: Sequence[float], target: Sequence[int] | None = None) -> float:
    y, size = case.target if target is None else target, len(case.image)
    logit = [[case.scale * float(case.image[i] @ case.text[j]) for j in range(size)] for i in range(size)]
    total = 0.0
    for i in range(size):
        own = [j for j in range(size) if y[j] == y[i]]
        for j in own:
            total -= weight[i] / len(own) * log_of_share(logit[i], j)
            total -= weight[i] / len(own) * log_of_share([logit[k][i] for k in range(size)], j)
    return total / (2 * size)


def slow_siglip(case: Case, weight: Sequence[float], target: Sequence[int] | None = None) -> float:
    y, size, total = case.target if target is None else target, len(case.image), 0.0
    for i in range(size):
        for j in range(size):
            sign = 1 if y[i] == y[j] else -1
            x = sign * (case.scale * float(case.image[i] @ case.text[j]) + case.bias)
            total += weight[i] * (math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x)
    return total / size


def slow_prompt_ce(case: Case, weight: Sequence[float]) -> float:
    vectors = []
    for c in range(max(case.classes) + 1):
        own = [case.prompt[k] for k in range(len(case.prompt)) if case.classes[k] == c]
        mean = sum(own) / len(own)
        vectors.append(mean / math.sqrt(float(mean @ mean)))
    total = 0.0
    for i in range(len(case.image)):
        total -= weight[i] * log_of_share([case.scale * float(case.image[i] @ v) for v in vectors], case.target[i])
    return total / len(case.image)


ORACLES: dict[str, Callable[..., float]] = {
    "infonce": slow_infonce,
    "unicl": slow_unicl,
    "siglip": slow_siglip,
    "prompt_ce": slow_prompt_ce,
}


def tensor(value: object) -> Tensor:
    return torch.as_tensor(np.asarray(value))


def loss(name: str, case: Case, *, weight: Sequence[float] | None = None) -> float:
    image, text, scale = tensor(case.image), tensor(case.text), tensor(case.scale)
    target, given_weight = tensor(case.target), None if weight is None else tensor(weight)
    if name == "infonce":
        found = infonce(image, text, scale, weight=given_weight)
    elif name == "unicl":
        found = unicl(image, text, scale, target, weight=given_weight)
    elif name == "siglip":
        found = siglip(image, text, scale, tensor(case.bias), target, weight=given_weight)
    else:
        prompt, classes = tensor(case.prompt), tensor(case.classes)
        found = prompt_cross_entropy(image, prompt, scale, target, classes, weight=given_weight)
    assert found.shape == ()
    return float(found)


def in_order(case: Case, order: Sequence[int]) -> Case:
    rows = list(order)
    return Case(
        image=case.image[rows], text=case.text[rows], prompt=case.prompt, scale=case.scale, bias=case.bias,
        target=[case.target[i] for i in rows], classes=case.classes, weight=[case.weight[i] for i in rows],
    )  # fmt: skip


def test_every_loss_has_an_oracle() -> None:
    assert set(ORACLES) == set(LOSSES)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
@examples(40)
@given(case=cases())
def test_a_loss_equals_its_formula_written_as_loops(name: str, weighted: bool, case: Case) -> None:
    expected = ORACLES[name](case, case.weight if weighted else [1.0] * len(case.image))
    found = loss(name, case, weight=case.weight if weighted else None)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@examples(20)
@given(case=cases())
def test_equal_weights_are_no_weights(name: str, case: Case) -> None:
    assert loss(name, case, weight=[1.0] * len(case.image)) == pytest.approx(loss(name, case), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@examples(20)
@given(case=cases(), data=st.data())
def test_the_order_of_the_pairs_does_not_matter(name: str, case: Case, data: st.DataObject) -> None:
    other = in_order(case, data.draw(st.permutations(range(len(case.image)))))
    assert loss(name, other) == pytest.approx(loss(name, case), rel=1e-9, abs=1e-10)
    found = loss(name, other, weight=other.weight)
    assert found == pytest.approx(loss(name, case, weight=case.weight), rel=1e-9, abs=1e-10)


@examples(20)
@given(case=cases(), data=st.data())
def test_nor_does_the_order_of_the_prompts(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.prompt))))
    other = Case(**{**vars(case), "prompt": case.prompt[order], "classes": [case.classes[k] for k in order]})
    assert loss("prompt_ce", other) == pytest.approx(loss("prompt_ce", case), rel=1e-9, abs=1e-10)


@examples(20)
@given(case=cases())
def test_image_and_text_may_change_places(case: Case) -> None:
    other = Case(**{**vars(case), "image": case.text, "text": case.image})
    for name in ("infonce", "unicl", "siglip"):
        assert loss(name, other) == pytest.approx(loss(name, case), rel=1e-9, abs=1e-10), name


@examples(30)
@given(case=cases())
def test_unicl_of_pairs_that_all_differ_is_infonce(case: Case) -> None:
    apart = Case(**{**vars(case), "target": list(range(len(case.image)))})
    for weight in (None, case.weight):
        assert loss("unicl", apart, weight=weight) == pytest.approx(loss("infonce", case, weight=weight), rel=1e-12)


@examples(30)
@given(case=cases())
def test_siglip_of_pairs_that_all_differ_is_the_loss_of_the_paper(case: Case) -> None:
    """Algorithm 1 there: labels = 2 eye(n) - ones(n); -sum(log_sigmoid(labels * logits)) / n."""
    size = len(case.image)
    logits = case.image @ case.text.T * case.scale + case.bias
    expected = np.logaddexp(0, -(2 * np.eye(size) - np.ones((size, size))) * logits).sum() / size
    apart = Case(**{**vars(case), "target": list(range(size))})
    assert loss("siglip", apart) == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("size", [1, 2, 7, 80])
def test_one_representation_for_all_costs_the_logarithm_of_the_batch(size: int) -> None:
    same = np.tile([[0.6, 0.8]], (size, 1))
    case = Case(same, same, same[:1], 14.0, -10.0, [i % 3 for i in range(size)], [0], [1.0] * size)
    assert loss("infonce", case) == pytest.approx(math.log(size), abs=1e-12)
    assert loss("unicl", case) == pytest.approx(math.log(size), abs=1e-12)


def test_a_pair_that_is_told_apart_costs_nothing() -> None:
    eye = np.eye(4)
    case = Case(eye, eye, eye, 1000.0, -500.0, [0, 1, 2, 3], [0, 1, 2, 3], [1.0] * 4)
    for name in LOSSES:
        assert loss(name, case) == pytest.approx(0, abs=1e-12), name


def class_only(counts: Sequence[int], scale: float) -> Case:
    """Every pair of a class has one caption; the classes' vectors stand as far apart as they can, on a simplex."""
    corners = np.eye(len(counts)) - 1 / len(counts)
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    target = [c for c, count in enumerate(counts) for _ in range(count)]
    rows = corners[target]
    return Case(rows, rows, corners, scale, 0.0, target, list(range(len(counts))), [1.0] * len(rows))


def least_infonce(counts: Sequence[int]) -> float:
    """With one caption a class, the n_y equal texts share the softmax of each image of class y, and each text shares its
    own among n_y images: at best log n_y in both directions, so sum_y n_y log(n_y) / B nats."""
    return sum(n * math.log(n) for n in counts) / sum(counts)


@pytest.mark.parametrize("counts", [FIELD_COUNTS, (5, 1), (3, 3, 3, 3), (1, 1, 1)])
def test_captions_that_only_name_the_class_leave_infonce_a_floor(counts: tuple[int, ...]) -> None:
    floor = least_infonce(counts)
    values = [loss("infonce", class_only(counts, scale)) for scale in (1, 5, 14, 100)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(floor, abs=1e-9)
    assert min(values) >= floor - 1e-12


@examples(30)
@given(
    seed=st.integers(0, 2**32), scale=st.floats(0.1, 100), counts=st.lists(st.integers(1, 6), min_size=1, max_size=4)
)
def test_which_no_representation_gets_under(seed: int, scale: float, counts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    target = [c for c, count in enumerate(counts) for _ in range(count)]
    captions = units(rng, len(counts), 5)
    image = captions[target] + rng.uniform(0, 0.5) * units(rng, len(target), 5)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    case = Case(image, captions[target], captions, scale, 0.0, target, list(range(len(counts))), [1.0] * len(target))
    assert loss("infonce", case) >= least_infonce(counts) - 1e-9


def test_the_floor_of_a_batch_of_eighty_in_three_classes() -> None:
    """Three quarters of what chance costs: log 80 = 4.38, and the best is 3.28."""
    assert least_infonce(FIELD_COUNTS) == pytest.approx(3.28357, abs=5e-6)
    assert loss("infonce", class_only(FIELD_COUNTS, 100)) == pytest.approx(3.28357, abs=5e-6)


def test_unicl_has_the_same_floor_and_is_flat_within_a_class() -> None:
    """Its floor is the entropy of its targets, which InfoNCE with class-only captions reaches at the same place."""
    case = class_only(FIELD_COUNTS, 100)
    assert loss("unicl", case) == pytest.approx(least_infonce(FIELD_COUNTS), abs=1e-9)
    image = torch.tensor(case.image, requires_grad=True)
    target = tensor(case.target)
    unicl(image, tensor(case.text), tensor(case.scale), target).backward()
    assert image.grad is not None
    assert float(image.grad.abs().max()) < 1e-9


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str, weighted: bool) -> None:
    rng = np.random.default_rng(5)
    image, text, prompt = (torch.tensor(units(rng, rows, 4), requires_grad=True) for rows in (6, 6, 5))
    scale, bias = torch.tensor(3.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    scale.requires_grad_()
    bias.requires_grad_()
    target, classes = torch.tensor([0, 1, 2, 0, 1, 0]), torch.tensor([0, 1, 2, 0, 0])
    weight = tensor([0.5, 1.5, 1.0, 0.2, 1.8, 1.0]) if weighted else None
    functions: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "infonce": (lambda i, t, s: infonce(i, t, s, weight=weight), (image, text, scale)),
        "unicl": (lambda i, t, s: unicl(i, t, s, target, weight=weight), (image, text, scale)),
        "siglip": (lambda i, t, s, b: siglip(i, t, s, b, target, weight=weight), (image, text, scale, bias)),
        "prompt_ce": (
            lambda i, p, s: prompt_cross_entropy(i, p, s, target, classes, weight=weight), (image, prompt, scale),
        ),
    }  # fmt: skip
    function, inputs = functions[name]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_a_scale_of_a_hundred_stays_finite_in_fp32(name: str) -> None:
    rng = np.random.default_rng(2)
    case = Case(units(rng, 64, 8), units(rng, 64, 8), units(rng, 9, 8), 100.0, -10.0,
                [i % 3 for i in range(64)], [0, 1, 2] * 3, [1.0] * 64)  # fmt: skip
    single = Case(**{**vars(case), "image": case.image.astype(np.float32), "text": case.text.astype(np.float32),
                     "prompt": case.prompt.astype(np.float32)})  # fmt: skip
    assert loss(name, single) == pytest.approx(loss(name, case), rel=1e-5)
