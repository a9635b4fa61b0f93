"""Dropout's mask as a pure function, against its hash written in NumPy, and the layer against autograd."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.conftest import examples
from torch import Tensor

from thoraclip.errors import ConfigError
from thoraclip.models.dropout import KeyedDropout, MaskKey, keep_mask

Words = npt.NDArray[np.uint32]
ANY = st.integers(-(2**62), 2**62)


def mask(samples: list[int] | Tensor, positions: int, *, p: float = 0.5, **numbers: int) -> Tensor:
    where = {"seed": 0, "step": 0, "module": 0} | numbers
    return keep_mask(p, samples=torch.as_tensor(samples, dtype=torch.int64), positions=positions, **where)


def murmur(x: Words) -> Words:
    """fmix32 as A. Appleby wrote it."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> np.uint32(13))
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def slow_mask(p: float, samples: list[int], positions: int, *numbers: int) -> npt.NDArray[np.bool_]:
    """The hash with unsigned words; a position's 16 bits are a half of a word, the low half mixed with the high one."""
    golden = np.array([0x9E3779B9], dtype=np.uint32)
    run = np.array([0], dtype=np.uint32)
    for number in numbers:
        for part in (number % 2**32, (number // 2**32) % 2**32):
            run = murmur(run * np.uint32(31) + np.uint32(part) + golden)
    rows = []
    for sample in samples:
        low, high = (np.array([part % 2**32], dtype=np.uint32) for part in (sample, sample // 2**32))
        number = murmur(murmur(low * golden + run) + high)
        bits = []
        for pair in range((positions + 1) // 2):
            place = murmur((np.array([pair], dtype=np.uint32) * golden) ^ run)
            word = int(((number | np.uint32(1)) * place + murmur(number + golden))[0])
            bits += [(word & 0xFFFF) ^ (word >> 16), word >> 16]
        signed = [b - 2**16 if b >= 2**15 else b for b in bits[:positions]]
        rows.append([b >= min(round(p * 2**16), 2**16 - 1) - 2**15 for b in signed])
    return np.array(rows, dtype=bool).reshape(len(samples), positions)


@examples(60)
@example(1 - 2**-30, (0, 0, 0), [1, 2], 33)  # 2^15 is no 16-bit number: nothing would be dropped
@given(st.floats(0, 1, exclude_max=True), st.tuples(ANY, ANY, ANY), st.lists(ANY, max_size=4), st.integers(1, 33))
def test_the_mask_is_the_hash_written_with_unsigned_words(
    p: float, numbers: tuple[int, int, int], samples: list[int], positions: int
) -> None:
    given_samples, stream = torch.tensor(samples, dtype=torch.int64), torch.get_rng_state()
    found = mask(given_samples, positions, p=p, **dict(zip(("seed", "step", "module"), numbers, strict=True)))
    assert given_samples.tolist() == samples and torch.equal(torch.get_rng_state(), stream), "left as they were"
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy(), slow_mask(p, samples, positions, *numbers))


def test_as_many_are_dropped_as_asked_and_no_row_knows_of_another() -> None:
    """The largest correlation between two samples, steps or positions, in standard deviations of independent ones."""
    for rows in (
        mask(torch.arange(400) * 2**16, 20_000, p=0.1, seed=1),
        torch.cat([mask([11], 20_000, p=0.1, step=step) for step in range(200)]),
        mask(torch.arange(20_000), 301, p=0.1, seed=2).T,  # two positions share a word
    ):
        assert float(rows.float().mean()) == pytest.approx(0.9, abs=1e-3)
        z = (rows.numpy() - 0.9) / 0.3
        product = z @ z.T / np.sqrt(z.shape[1])
        np.fill_diagonal(product, 0)
        assert np.abs(product).max() < 6


def keyed(p: float, samples: list[int] | None, *, step: int = 0, module: int = 0, seed: int = 0) -> KeyedDropout:
    key = MaskKey(seed)
    if samples is not None:
        key.use(step, torch.tensor(samples))
    return KeyedDropout(p, module, key)


def test_the_key_is_read_at_every_call_and_without_samples_nothing_is_dropped() -> None:
    layer, x = keyed(0.5, [0, 1]), torch.ones(2, 64)
    first = layer(x)
    layer.key.use(1, torch.tensor([0, 1]))
    assert not torch.equal(layer(x), first)
    layer.key.use(0, torch.tensor([1, 0]))
    assert torch.equal(layer(x), first.flip(0))
    layer.key.clear()
    assert layer(x) is x
    assert keyed(0.0, [0, 1, 2])(x) is x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3, 7)])
def test_it_is_the_mask_times_the_scale_whether_the_model_trains_or_not(shape: tuple[int, ...], training: bool) -> None:
    """And its gradient, against autograd through x * mask * scale."""
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    samples = [9, 1, 2**35, 4]
    found = keyed(0.25, samples, step=3, module=7, seed=5).train(training)(x)
    kept = mask(samples, x[0].numel(), p=0.25, step=3, module=7, seed=5).view(shape)
    expected = x * kept / 0.75
    assert torch.allclose(found, expected, rtol=1e-12)
    gradients = [torch.autograd.grad((y**2 * weight).sum(), x)[0] for y in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    for rows in (1, 5):
        with pytest.raises(ConfigError, match=f"3 samples for {rows} rows; a tower must keep a sample's together"):
            keyed(0.1, [0, 1, 2])(torch.zeros(rows, 4))


def test_windows_of_a_sample_are_its_rows() -> None:
    """As in Swin: two windows of four numbers drop what one row of eight numbers drops."""
    x = torch.randn(6, 4)
    assert torch.equal(keyed(0.5, [7, 1, 2])(x), keyed(0.5, [7, 1, 2])(x.view(3, 8)).view(6, 4))


def test_under_autocast_it_answers_in_the_precision_of_what_follows_and_without_in_its_own() -> None:
    x, layer = torch.randn(3, 64, requires_grad=True), keyed(0.5, [0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    kept = mask([0, 1, 2], 64)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, x.detach().to(torch.bfloat16) * kept * 2)
    found.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert torch.equal(x.grad, kept * 2.0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert layer(torch.ones(3, 8, dtype=dtype)).dtype == dtype


def test_its_state_is_empty() -> None:
    layer = keyed(0.1, None, module=3)
    assert layer.state_dict() == {} and list(layer.parameters()) == []
