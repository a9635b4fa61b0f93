"""Dropout's mask as a pure function, against its hash written in NumPy, and the layer against autograd."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from tests.conftest import examples
from torch import Tensor

from thoraclip.errors import ConfigError
from thoraclip.models.dropout import KeyedDropout, MaskKey, keep_mask

Words = npt.NDArray[np.uint32]
ANY = st.integers(-(2**62), 2**62)


def mask(
    samples: list[int] | Tensor, positions: int, *, p: float = 0.5, seed: int = 0, step: int = 0, module: int = 0
) -> Tensor:
    given_samples = samples if isinstance(samples, Tensor) else torch.tensor(samples, dtype=torch.int64)
    return keep_mask(p, seed=seed, step=step, module=module, samples=given_samples, positions=positions)


def murmur(x: Words) -> Words:
    """fmix32 as A. Appleby wrote it."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> np.uint32(13))
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def slow_mask(p: float, seed: int, step: int, module: int, samples: list[int], positions: int) -> npt.NDArray[np.bool_]:
    """The hash with unsigned words; a position's 16 bits are a half of a word, the low half mixed with the high one."""
    golden = np.array([0x9E3779B9], dtype=np.uint32)
    run = np.array([0], dtype=np.uint32)
    for number in (seed, step, module):
        low, high = number % 2**32, (number // 2**32) % 2**32
        for part in (low, high):
            run = murmur(run * np.uint32(31) + np.uint32(part) + golden)
    rows = []
    for sample in samples:
        low, high = np.array([sample % 2**32], dtype=np.uint32), np.array([sample // 2**32 % 2**32], dtype=np.uint32)
        number = murmur(murmur(low * golden + run) + high)
        bits = []
        for pair in range((positions + 1) // 2):
            place = murmur((np.array([pair], dtype=np.uint32) * golden) ^ run)
            word = int(((number | np.uint32(1)) * place + murmur(number + golden))[0])
            bits += [(word & 0xFFFF) ^ (word >> 16), word >> 16]
        signed = [b - 2**16 if b >= 2**15 else b for b in bits[:positions]]
        rows.append([b >= round(p * 2**16) - 2**15 for b in signed])
    return np.array(rows, dtype=bool).reshape(len(samples), positions)


@examples(60)
@given(
    p=st.floats(0, 0.999),
    seed=ANY,
    step=ANY,
    module=ANY,
    samples=st.lists(ANY, max_size=4),
    positions=st.integers(1, 33),
)
def test_the_mask_is_the_hash_written_with_unsigned_words(
    p: float, seed: int, step: int, module: int, samples: list[int], positions: int
) -> None:
    given_samples = torch.tensor(samples, dtype=torch.int64)
    found = mask(given_samples, positions, p=p, seed=seed, step=step, module=module)
    assert given_samples.tolist() == samples, "left as they were"
    assert found.dtype == torch.bool and found.shape == (len(samples), positions)
    np.testing.assert_array_equal(found.numpy(), slow_mask(p, seed, step, module, samples, positions))


def test_it_draws_nothing_from_the_global_stream() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = mask([1, 2], 50)
    torch.manual_seed(1)
    assert torch.equal(mask([1, 2], 50), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [0.0, 2**-12, 0.1, 0.999])
def test_the_share_that_is_dropped_is_what_was_asked(p: float) -> None:
    found = mask(torch.arange(512), 4096, p=p, seed=3)
    low, high = binom.ppf([1e-7, 1 - 1e-7], found.numel(), round(p * 2**16) / 2**16)
    assert low <= int((~found).sum()) <= high
    each = (~found).sum(dim=1).numpy()
    low, high = binom.ppf([1e-10, 1 - 1e-10], 4096, p)
    assert (low <= each).all() and (each <= high).all(), "in every sample"


def test_a_share_next_to_one_still_drops() -> None:
    assert float((~mask(torch.arange(64), 1024, p=1 - 2**-30)).float().mean()) > 0.999


def standardised(rows: Tensor, p: float) -> npt.NDArray[np.float64]:
    return (rows.numpy().astype(np.float64) - (1 - p)) / np.sqrt(p * (1 - p))


def largest_correlation(rows: Tensor, p: float) -> float:
    """Largest correlation between two different rows of bool[R, N], in standard deviations of independent ones."""
    z = standardised(rows, p)
    product = z @ z.T / np.sqrt(z.shape[1])
    np.fill_diagonal(product, 0)
    return float(np.abs(product).max())


SAMPLES = {
    "neighbours": torch.arange(400),
    "every 2^16th": torch.arange(400) * 2**16,
    "every 2^32nd": torch.arange(400) * 2**32,
    "below zero": -torch.arange(400) - 1,
    "drawn again": torch.arange(400) * 33_920 + 17,
}


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_do_not_know_of_each_other(name: str, p: float) -> None:
    assert largest_correlation(mask(SAMPLES[name], 20_000, p=p, seed=1), p) < 6


@pytest.mark.parametrize("p", [0.1])
def test_nor_modules_steps_and_seeds_of_one_sample(p: float) -> None:
    for name in ("module", "step", "seed"):
        rows = torch.cat([mask([11], 20_000, p=p, **{name: number}) for number in range(200)])
        assert largest_correlation(rows, p) < 6, name


@pytest.mark.parametrize("p", [0.1])
def test_nor_positions(p: float) -> None:
    """Each position's values over 20,000 samples; neighbours share a word."""
    assert largest_correlation(mask(torch.arange(20_000), 301, p=p, seed=2).T, p) < 6


def keyed(p: float, samples: list[int] | None, *, step: int = 0, module: int = 0, seed: int = 0) -> KeyedDropout:
    key = MaskKey(seed)
    if samples is not None:
        key.use(step, torch.tensor(samples))
    return KeyedDropout(p, module, key)


def test_without_samples_nothing_is_dropped() -> None:
    x = torch.randn(3, 4)
    layer = keyed(0.5, [0, 1, 2])
    assert not torch.equal(layer(x), x)
    layer.key.clear()
    assert layer(x) is x
    assert keyed(0.0, [0, 1, 2])(x) is x


@pytest.mark.parametrize("training", [True, False])
def test_it_drops_whether_the_model_trains_or_not(training: bool) -> None:
    layer, x = keyed(0.5, [0, 1, 2], step=4, module=7, seed=5), torch.randn(3, 4, 5)
    expected = x * mask([0, 1, 2], 20, step=4, module=7, seed=5).view(3, 4, 5) * 2
    assert torch.equal(layer.train(training)(x), expected)


def test_the_key_is_read_at_every_call() -> None:
    layer, x = keyed(0.5, [0, 1]), torch.ones(2, 64)
    first = layer(x)
    layer.key.use(1, torch.tensor([0, 1]))
    second = layer(x)
    layer.key.use(0, torch.tensor([1, 0]))
    assert not torch.equal(first, second)
    assert torch.equal(layer(x), first.flip(0))


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3, 7)])
def test_the_gradient_is_the_mask_times_the_scale(shape: tuple[int, ...]) -> None:
    """Against autograd through x * mask * scale."""
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    layer = keyed(0.25, [9, 1, 2**35, 4], step=3)
    (layer(x) ** 2 * weight).sum().backward()
    found, x.grad = x.grad, None
    kept = mask([9, 1, 2**35, 4], x[0].numel(), p=0.25, step=3).view(shape)
    ((x * kept / 0.75) ** 2 * weight).sum().backward()
    assert found is not None and x.grad is not None
    assert torch.allclose(found, x.grad, rtol=1e-12)
    assert torch.equal(found == 0, ~kept)


@pytest.mark.parametrize("rows", [1, 6])
def test_a_tower_that_loses_or_multiplies_its_rows_is_refused(rows: int) -> None:
    with pytest.raises(ConfigError, match=f"3 samples for {rows} rows; a tower must keep one row a sample"):
        keyed(0.1, [0, 1, 2])(torch.zeros(rows, 4))


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(ConfigError, match=f"lora_dropout = {p}"):
        keyed(p, None)


def test_under_autocast_it_answers_in_the_precision_of_what_follows() -> None:
    x = torch.randn(3, 64, requires_grad=True)
    layer = keyed(0.5, [0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    kept = mask([0, 1, 2], 64)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, x.detach().to(torch.bfloat16) * kept * 2)
    found.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert torch.equal(x.grad, kept * 2.0)


def test_without_autocast_the_precision_stays() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert keyed(0.5, [0])(torch.ones(1, 8, dtype=dtype)).dtype == dtype


def test_its_state_is_empty_and_its_text_says_what_it_does() -> None:
    layer = keyed(0.1, None, module=3)
    assert layer.state_dict() == {} and list(layer.parameters()) == []
    assert repr(layer) == "KeyedDropout(p=0.1, module=3)"
