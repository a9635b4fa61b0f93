"""Several processes or machines, through Accelerate: how rows are shared, gathered, and gradients summed.

torchrun --nproc_per_node 2 -m thoraclip finetune ...          on CPUs
accelerate launch -m thoraclip finetune ...                    on GPUs
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thoraclip.errors import ConfigError, MissingExtraError, did_you_mean

__all__ = ["TRACKERS", "ProcessGroup"]

TRACKERS: Mapping[str, tuple[str, ...]] = {
    "mlflow": ("mlflow",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Tracker -> the packages of which one must be installed; Accelerate itself passes over a missing one without a word."""


class ProcessGroup:
    """The processes of one training run; with one process nothing is sent anywhere.

    Args:
        wanted: how many processes there must be; 0 takes as many as were launched.
        trackers: names in `TRACKERS` that get the metrics besides the run folder.
        folder: where trackers that write files put them.

    Raises:
        ConfigError: another number of processes than was asked for, or an unknown tracker.
        MissingExtraError: a tracker is not installed.
    """

    def __init__(self, *, wanted: int = 0, trackers: Sequence[str] = (), folder: Path | None = None) -> None:
        from accelerate import Accelerator

        for name in trackers:
            if name not in TRACKERS:
                raise ConfigError(f"unknown tracker '{name}'{did_you_mean(name, TRACKERS)}")
            if not any(find_spec(package) for package in TRACKERS[name]):
                raise MissingExtraError(TRACKERS[name][-1], "track")
        _refuse_lost_processes()
        self._accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(), log_with=list(trackers) or None, project_dir=folder
        )
        if wanted and wanted != self.count:
            raise ConfigError(
                f"processes = {wanted}, but {self.count} runs; start them with: torchrun --nproc_per_node {wanted} "
                "-m thoraclip finetune ..."
            )
        self._tracks = bool(trackers)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device(self._accelerator.device)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self._accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """True in the one process that writes."""
        return bool(self._accelerator.is_main_process)

    def own(self, rows: int) -> tuple[Tensor, int]:
        """(rows of this process, padded with the last one so that all have as many; how many are not padding)."""
        share = -(-rows // self.count)
        first = share * int(self._accelerator.process_index)
        mine = torch.arange(first, first + share).clamp_(max=rows - 1)
        return mine, max(0, min(share, rows - first))

    def gather(self, local: Tensor, rows: int) -> Tensor:
        """f[b, ...] of every process -> f[rows, ...], in the order of the rows, without gradient."""
        if self.count == 1:
            return local
        whole: Tensor = self._accelerator.gather(local.detach().contiguous())
        return whole[:rows]

    def combine(self, encoders: Iterable[nn.Parameter], losses: Iterable[nn.Parameter]) -> None:
        """Sum the encoders' gradients over the processes; the loss's own are whole in each, and their mean is taken."""
        if self.count == 1:
            return
        for parameters, how in ((encoders, "sum"), (losses, "mean")):
            for parameter in parameters:
                local = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._accelerator.reduce(local, reduction=how)

    def any(self, flag: bool) -> bool:
        """True in all where it is true in one."""
        if self.count == 1:
            return flag
        total: Tensor = self._accelerator.reduce(torch.tensor(float(flag), device=self.device), reduction="sum")
        return bool(total.item() > 0)

    def wait(self) -> None:
        """Until every process is here."""
        self._accelerator.wait_for_everyone()

    def track(
        self, settings: Mapping[str, Any] | None = None, values: Mapping[str, float] | None = None, *, step: int = 0
    ) -> None:
        """Tell the trackers the settings, once, or the values of a step."""
        if not self._tracks:
            return
        if settings is not None:
            plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
            self._accelerator.init_trackers("thoraclip", config=plain)
        if values is not None:
            self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Let the trackers end their run."""
        if self._tracks:
            self._accelerator.end_training()


def _refuse_lost_processes() -> None:
    """Accelerate's launcher starts one process on CPUs, whatever it was asked, and leaves only this trace of the request."""
    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if asked and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does on CPUs; use: "
            "torchrun --nproc_per_node N -m thoraclip finetune ..."
        )
