"""Folding grey into the first layer leaves the outputs as they were, or is not done."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from torch import nn

from thoraclip.imaging import Preprocess, normalise
from thoraclip.models.grey import fold_grey


@given(
    st.tuples(*[st.floats(0, 1)] * 3), st.tuples(*[st.floats(0.05, 1)] * 3), st.integers(1, 4), st.booleans(),
    st.integers(0, 2**16), st.sampled_from([0, 128, 255]),
)  # fmt: skip
@examples(40)
def test_any_normalisation_folds(mean: Any, std: Any, stride: int, has_bias: bool, seed: int, zero: int) -> None:
    """Against the plain way: normalise, three channels, the old convolution."""
    torch.manual_seed(seed)
    spec = Preprocess(size=12, mean=mean, std=std)
    network = nn.Sequential(nn.Conv2d(3, 5, 4, stride, bias=has_bias), nn.Flatten())
    grey = torch.randint(0, 256, (2, 12, 12), dtype=torch.uint8)
    expected = network.double()(torch.from_numpy(normalise(grey.numpy(), spec)).double())
    network.float()
    assert fold_grey(network, spec, zero=zero)
    found = network(grey[:, None].float() - zero)
    assert torch.allclose(found.double(), expected, atol=2e-4, rtol=1e-4)


@given(st.integers(1, 4), st.integers(4, 17), st.integers(4, 17), st.booleans(), st.integers(0, 2**16))
@examples(30)
def test_patches_as_one_product_are_the_convolution(
    side: int, height: int, width: int, has_bias: bool, seed: int
) -> None:
    """Also where the picture is no whole number of patches."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 5, side, side, bias=has_bias))
    greys = torch.randint(0, 256, (2, height, width), dtype=torch.uint8)
    spec = Preprocess(size=max(height, width))
    expected = network.double()(torch.from_numpy(normalise(greys.numpy(), spec)).double())
    network.float()
    assert fold_grey(network, spec) and isinstance(network[0], nn.Linear)
    found = network(greys[:, None].float())
    assert found.shape == expected.shape and torch.allclose(found.double(), expected, atol=1e-3)


class Reader(nn.Module):
    """What a drawn network does with its pixels: something before the first convolution, and perhaps beside it."""

    def __init__(self, before: str, beside: str, conv: nn.Module, *, outer: int, level: float) -> None:
        super().__init__()
        made = {"batch": nn.BatchNorm2d(3), "group": nn.GroupNorm(1, 3), "instance": nn.InstanceNorm2d(3)}
        self.before, self.beside, self.outer, self.level = before, beside, outer, level
        self.conv, self.norm = conv, made.get(before, nn.Identity())
        self.second = nn.Conv2d(3, 1, 1) if beside == "convolution" else nn.Identity()
        self.last = nn.Linear(5, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        read = self.norm(pixels)
        if self.before == "relu":
            read = read.relu()
        if self.before == "maximum":  # of grey levels, as of any growing function of them
            read = nn.functional.max_pool2d(read, 3, 1)
        if self.outer:
            read = nn.functional.pad(read, [self.outer] * 4, value=self.level)
        features = self.last(self.conv(read).mean((2, 3)).tanh())
        return features + (self.second(pixels).mean((1, 2, 3))[:, None] if self.beside != "nothing" else 0)


networks = st.fixed_dictionaries(
    {
        "before": st.sampled_from(["nothing"] * 3 + ["batch", "group", "instance", "relu", "maximum"]),
        "beside": st.sampled_from(["nothing"] * 3 + ["convolution", "mean"]),
        "outer": st.sampled_from([0, 0, 1, 2]),
        "level": st.sampled_from([0.0, -1.0, 0.3]),
        "kernel": st.integers(1, 4),
        "stride": st.integers(1, 4),
        "dilation": st.integers(1, 2),
        "padding": st.sampled_from([0, 0, 1, 2, "same", "valid"]),
        "padding_mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    }
)


def draw_network(drawn: dict[str, Any], seed: int) -> tuple[nn.Module, bool]:
    """(network, whether its pixels meet nothing but the convolution, so that folding must be done)."""
    torch.manual_seed(seed)
    values = dict(drawn)
    reader = {name: values.pop(name) for name in ("before", "beside", "outer", "level")}
    if values["padding"] == "same":
        values["stride"] = 1
    kernel = values.pop("kernel")
    network = Reader(conv=nn.Conv2d(3, 5, kernel, **values), **reader).eval()
    is_padded = values["padding"] in (1, 2) or (values["padding"] == "same" and kernel > 1)
    alone = reader["before"] in ("nothing", "maximum") and reader["beside"] == "nothing" and not reader["outer"]
    return network, alone and not (is_padded and values["padding_mode"] == "zeros")


@given(networks, st.integers(0, 2**16), st.sampled_from([0, 128]), st.sampled_from([12, 13]))
@examples(200)
def test_any_network_gives_what_it_gave_or_is_left_alone(drawn: Any, seed: int, zero: int, size: int) -> None:
    network, must_fold = draw_network(drawn, seed)
    spec = Preprocess(size=size)
    greys = torch.randint(0, 256, (2, size, size), dtype=torch.uint8)
    greys[:, 0], greys[:, -1], greys[:, :, 0] = 0, 255, 255
    pixels = torch.from_numpy(normalise(greys.numpy(), spec))
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        expected = network(pixels)
        folded = fold_grey(network, spec, zero=zero)
        found = network(greys[:, None].float() - zero) if folded else network(pixels)
    assert folded == must_fold
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    if not folded:
        after = network.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "network",
    [
        nn.Conv2d(3, 5, 3),
        nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 5, 3)),
        nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 6, 3, groups=3)),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 5)),
        nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)),
        nn.Sequential(nn.Tanh()),
    ],
    ids=str,
)
def test_networks_without_a_layer_that_could_be_folded(network: nn.Module) -> None:
    """Or, after dropout, with one. Whether a module is in training mode stays as it was, as do running statistics."""
    before = copy.deepcopy(network.state_dict())
    pixels = torch.from_numpy(normalise(torch.zeros(1, 12, 12, dtype=torch.uint8).numpy(), Preprocess(size=12)))
    modes = [module.training for module in network.modules()]
    assert fold_grey(network, Preprocess(size=12)) is any(isinstance(m, nn.Dropout) for m in network.modules())
    assert [module.training for module in network.modules()] == modes
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("1."))
    if not isinstance(network, nn.Conv2d) and not any(isinstance(m, nn.Dropout) for m in network.modules()):
        network(pixels)


def test_a_layer_that_is_called_twice_or_never_is_left_alone() -> None:
    class Odd(nn.Module):
        def __init__(self, calls: int) -> None:
            super().__init__()
            self.first, self.other, self.calls = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, padding=1), calls

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            read = self.other(pixels) if self.calls != 1 else pixels
            for _ in range(self.calls):
                read = self.first(read)
            return read

    assert [fold_grey(Odd(calls).eval(), Preprocess(size=12)) for calls in (0, 1, 2)] == [False, True, False]


@pytest.mark.parametrize("kind", ["MobileNetV1", "MobileNetV2"])
def test_networks_that_pad_outside_the_convolution_are_left_alone(kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")(image_size=32, depth_multiplier=0.25)
    network = getattr(transformers, f"{kind}Model")(config).eval()
    assert not fold_grey(network, Preprocess(size=32))


def test_a_network_that_reads_its_pixels_beside_the_layer_is_left_alone() -> None:
    given_ = {"outer": 0, "level": 0.0}
    readers = [Reader("nothing", beside, nn.Conv2d(3, 5, 3), **given_) for beside in ("nothing", "mean", "convolution")]
    assert [fold_grey(reader.eval(), Preprocess(size=12)) for reader in readers] == [True, False, False]
