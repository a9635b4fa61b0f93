"""LoRA on the towers of an encoder, by PEFT: which modules, with which dropout, and how the result is stored.

LoRA: Hu et al. 2021, arXiv:2106.09685; the rank-stabilised scale alpha / sqrt(r): Kalajdzievski 2023, arXiv:2312.03732.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from thoraclip.config import Settings
from thoraclip.documents import read_json
from thoraclip.errors import ConfigError, first_line
from thoraclip.models.checkpoint import find_checkpoint, quiet
from thoraclip.models.dropout import KeyedDropout, MaskKey
from thoraclip.models.dual_encoder import untrained_encoder
from thoraclip.models.files import holds_weights, write_about
from thoraclip.models.network import network_settings, recompute_layers
from thoraclip.models.prefix import tower_blocks
from thoraclip.models.vision_encoder import VisionEncoder
from thoraclip.ranges import Count, OneOf, Range
from thoraclip.runs import needing_room, whole_folder

__all__ = ["LoraSettings", "TunableEncoder", "add_lora", "check_lora", "resolve_targets"]

_OTHER_NAMES: Mapping[str, str] = {
    "q_proj": r"query",
    "k_proj": r"key",
    "v_proj": r"value",
    "out_proj": r"o_proj|attention\.output\.dense",
    "o_proj": r"out_proj|attention\.output\.dense",
    "fc1": r"intermediate\.dense|up_proj|pwconv1|pointwise_conv1",
    "fc2": r"(?<!attention\.)output\.dense|down_proj|pwconv2|pointwise_conv2",
}
"""CLIP's name of a linear layer -> those of BERT, Swin, DINO and ConvNeXt."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """What is trained in an encoder."""

    rank: Annotated[int, Range(1, 65_536)] = 8
    """Rank of the LoRA matrices."""
    alpha: Annotated[float, Range(0, 1_000_000, above=True)] = 16.0
    """Numerator of LoRA's scale."""
    rslora: bool = True
    """Rank-stabilised scale, alpha / sqrt(rank), in place of alpha / rank."""
    lora_dropout: Annotated[float, Range(0, 1, below=True)] = 0.1
    """Share of a LoRA layer's inputs that is dropped; a function of seed, step, sample, module and position alone."""
    target_modules: tuple[str, ...] = ("q_proj", "v_proj", "fc1", "fc2")
    """Linear layers that get LoRA, by CLIP's names; other architectures' are found by these too."""
    lora_blocks: Count = 0
    """LoRA only in the last so many transformer blocks of each tuned tower; 0 for all."""
    towers: Annotated[str, OneOf(("both", "vision", "text"))] = "both"
    """Which tower is tuned: both, vision or text."""
    projections: Annotated[str, OneOf(("auto", "train", "freeze"))] = "auto"
    """Whether both projections are trained whole: train, freeze, or auto: where the towers were never aligned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target_modules:
            raise ConfigError("target_modules = []: name one linear layer or more, for example q_proj")


@dataclass(frozen=True)
class TunableEncoder:
    """An encoder with LoRA, whose base is frozen and in eval mode."""

    encoder: VisionEncoder  # gives features with gradient; `encoder.model` is the PEFT model
    vision_key: MaskKey  # of the dropout masks of the vision tower
    text_key: MaskKey
    base: str  # fingerprint of the weights that LoRA was added to
    log_scale: nn.Parameter  # logarithm of the logit scale, scalar; 0 without a text tower
    bias: nn.Parameter  # logit bias of the sigmoid loss, scalar

    @property
    def encoder_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable tensors of the towers and projections, by name, sorted."""
        return dict(sorted((name, p) for name, p in self.encoder.model.named_parameters() if p.requires_grad))

    @property
    def loss_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable tensors of the loss, by name."""
        both = {"bias": self.bias, "log_scale": self.log_scale}
        return {name: p for name, p in both.items() if p.requires_grad}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every trainable tensor, by name."""
        return self.encoder_parameters | self.loss_parameters

    @property
    def trains_text(self) -> bool:
        """True where the vector of a text changes in training."""
        return any(_is_text(self.encoder, n) or ".text_projection." in n for n in self.encoder_parameters)

    def clear_masks(self) -> None:
        """Drop nothing: for scoring."""
        self.vision_key.clear()
        self.text_key.clear()

    def clamp_scale(self, highest: float) -> float:
        """Bring a trained logit scale down to `highest`; returns what it is then."""
        with torch.no_grad():
            if self.log_scale.requires_grad:
                self.log_scale.clamp_(max=math.log(highest))
            return float(self.log_scale.exp())

    def centre_bias(self, mean_cosine: float) -> None:
        """Set the logit bias so that the mean logit is zero."""
        with torch.no_grad():
            self.bias.copy_(-self.log_scale.exp() * mean_cosine)

    def save(self, folder: Path, note: Mapping[str, Any]) -> None:
        """Write a PEFT adapter folder with `thoraclip.json` beside it; it appears whole, and equal weights give equal
        bytes."""
        with whole_folder(folder, holds_weights) as part:
            with quiet(), needing_room(folder):
                self.encoder.model.save_pretrained(part, safe_serialization=True, save_embedding_layers=False)
            (part / "README.md").unlink(missing_ok=True)  # PEFT's form, not filled in
            file = part / "adapter_config.json"
            config = read_json(file)
            for name in ("target_modules", "modules_to_save"):  # sets, in any order
                config[name] = config[name] and sorted(config[name])
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            log_scale, bias = float(self.log_scale.detach()), float(self.bias.detach())
            write_about(part, base=self.base, log_scale=log_scale, bias=bias, facts=dict(note))


def add_lora(
    encoder: VisionEncoder,
    settings: LoraSettings,
    *,
    seed: int,
    train_scale: bool = True,
    train_bias: bool = False,
    checkpointing: bool = False,
) -> TunableEncoder:
    """Wrap an encoder's model with LoRA; the model itself is changed, so load it for this purpose.

    The LoRA matrices A are drawn from `seed` alone, B is zero: nothing changes before the first step.

    Args:
        encoder: in fp32; autocast is its own affair.
        seed: of the initial values and of the dropout masks.
        train_scale, train_bias: whether the loss's own two numbers are trained.
        checkpointing: recompute each layer in the backward pass: less memory, more time.

    Raises:
        ConfigError: no module of that name in a tower that was asked for, no projection where they are to be trained,
            more blocks than there are, or a rank above that of every layer.
    """
    from peft import LoraConfig, get_peft_model

    network, device = encoder.model, encoder.device
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.rslora,
        lora_dropout=settings.lora_dropout,
        bias="none",
        **_modules(encoder, settings),
    )
    log_scale, bias = (
        float(getattr(network, name).detach()) if hasattr(network, name) else 0.0
        for name in ("logit_scale", "logit_bias")
    )
    # PEFT draws from the global stream; what it draws is drawn again below
    with quiet(), torch.random.fork_rng(devices=[]):
        wrapped = get_peft_model(network, config).eval()
    wrapped.peft_config["default"].base_model_name_or_path = encoder.name
    vision_key, text_key = MaskKey(seed), MaskKey(seed)
    layers = sorted((name, module) for name, module in wrapped.named_modules() if hasattr(module, "lora_dropout"))
    for number, (name, layer) in enumerate(layers):
        _initialise(layer, seed, number)
        key = text_key if _is_text(encoder, name) else vision_key
        layer.lora_dropout["default"] = KeyedDropout(settings.lora_dropout, number, key)
        layer.cast_input_dtype_enabled = False  # autocast does it; to fp32 and back is a copy of the largest tensors
    if checkpointing:
        recompute_layers(wrapped, encoder.name)
    return TunableEncoder(
        encoder=dataclasses.replace(encoder, model=wrapped),
        vision_key=vision_key,
        text_key=text_key,
        base=encoder.fingerprint,
        log_scale=nn.Parameter(torch.tensor(log_scale, device=device), requires_grad=train_scale),
        bias=nn.Parameter(torch.tensor(bias, device=device), requires_grad=train_bias),
    )


def check_lora(model: str, settings: LoraSettings) -> None:
    """Refuse as `add_lora` does, or with ModelError where the model's configuration describes no network; no weights
    are read."""
    checkpoint = find_checkpoint(model)
    network = network_settings(checkpoint, precision="fp32", device="meta")
    try:
        with torch.device("meta"):
            encoder = untrained_encoder(checkpoint, network)
    except Exception as error:  # Transformers raises ValueError, TypeError, RuntimeError and more
        raise checkpoint.error(f"its config.json describes no network ({first_line(error)})") from error
    _modules(encoder, settings)


def _modules(encoder: VisionEncoder, settings: LoraSettings) -> dict[str, list[str] | None]:
    """What gets LoRA and what is trained whole, as PEFT's `LoraConfig` calls it."""
    targets = resolve_targets(encoder, settings)
    full = max(min(encoder.model.get_submodule(name).weight.shape) for name in targets)
    if settings.rank > full:
        raise ConfigError(f"rank = {settings.rank}: the layers of '{encoder.name}' have at most rank {full}; lower it")
    return {"target_modules": targets, "modules_to_save": _projections(encoder, settings.projections) or None}


def resolve_targets(encoder: VisionEncoder, settings: LoraSettings) -> list[str]:
    """Full names of the linear layers that `target_modules` mean, in the blocks of every tower that is asked for.

    A name is the end of a module's name; where a tower has none of that name, its architecture's own name is tried.

    Raises:
        ConfigError: a tower without any of them, or a name that is in no tower; the message lists the linear layers
            that exist. Or `tower_blocks` refuses.
    """
    names, towers, last = settings.target_modules, settings.towers, settings.lora_blocks
    targets, unknown, all_kinds = set[str](), set(names), set[str]()
    for tower in ("vision", "text") if towers == "both" else (towers,):
        if tower not in encoder.towers:
            raise ConfigError(f"towers = '{towers}': '{encoder.name}' has no {tower} tower; set towers = vision")
        begin = encoder.towers[tower]
        modules = {n: module for n, module in encoder.model.named_modules() if n.startswith(begin)}
        # PyTorch's attention never calls the forward of its linear layers
        passed = {n for n in modules if isinstance(modules.get(n.rpartition(".")[0]), nn.MultiheadAttention)}
        linear = [n for n, module in modules.items() if isinstance(module, nn.Linear) and n not in passed]

        def ending(pattern: str, linear: list[str] = linear) -> list[str]:
            return [n for n in linear if re.search(rf"(^|\.)({pattern})$", n)]

        # "$^" ends no name
        matched = {name: ending(re.escape(name)) or ending(_OTHER_NAMES.get(name, "$^")) for name in names}
        kinds = {re.sub(r"^.*?\.\d+\.", "", n) for n in linear}
        if not any(matched.values()):
            there = f"its linear layers are: {', '.join(sorted(kinds))}" if kinds else "it has no linear layer"
            raise ConfigError(
                f"target_modules = {list(names)}: none of them is in the {tower} tower of '{encoder.name}'; {there}"
            )
        unknown -= {name for name in names if matched[name]}
        all_kinds |= kinds
        tuned = tuple(f"{name}." for name in list(tower_blocks(encoder, tower, last))[-last:]) if last else ("",)
        targets.update(n for found in matched.values() for n in found if n.startswith(tuned))
    if unknown:
        raise ConfigError(
            f"target_modules: '{min(unknown)}' is no linear layer of '{encoder.name}'; they are: "
            f"{', '.join(sorted(all_kinds))}"
        )
    return sorted(targets)


def _is_text(encoder: VisionEncoder, name: str) -> bool:
    """True for a module of the text tower, by its name in the PEFT model."""
    return "text" in encoder.towers and name.removeprefix("base_model.model.").startswith(encoder.towers["text"])


def _projections(encoder: VisionEncoder, projections: str) -> list[str]:
    if projections == "freeze" or (projections == "auto" and encoder.architecture.aligned):
        return []
    both = ("visual_projection", "text_projection")
    modules = {name: getattr(encoder.model, name, nn.Identity()) for name in both}  # of open_clip also perceptrons
    names = [name for name, module in modules.items() if list(module.parameters())]
    if not names:
        raise ConfigError(f"projections = '{projections}': model '{encoder.name}' has none; set projections = freeze")
    return names


def _initialise(layer: Any, seed: int, number: int) -> None:
    """LoRA's own initial values (A Kaiming-uniform, B zero), from a generator of this layer."""
    matrix = layer.lora_A["default"].weight
    drawn = torch.empty(matrix.shape)  # on the CPU, whose numbers are the same everywhere
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed * 1_000_003 + number))
    with torch.no_grad():
        matrix.copy_(drawn)
        layer.lora_B["default"].weight.zero_()
