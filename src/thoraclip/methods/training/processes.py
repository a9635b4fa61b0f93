"""Several processes or machines, through Accelerate: how rows are shared, gathered, and gradients summed.

torchrun --nproc_per_node 2 -m thoraclip COMMAND ...          on CPUs
accelerate launch -m thoraclip COMMAND ...                    on GPUs
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, nn

from thoraclip.errors import ConfigError, TrainingError
from thoraclip.runs import process_count

__all__ = ["ProcessGroup", "require_launch"]

_PATIENCE = timedelta(days=7)
"""How long a process waits for one that decodes or scores; one that died is noticed at once, or by the launcher."""


def require_launch(wanted: int = 0) -> None:
    """Raise ConfigError where another number of processes was started than `wanted`; 0 takes as many as there are."""
    # Accelerate's launcher starts one process on CPUs, whatever was asked, and leaves only this trace
    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if asked and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does on CPUs; use: "
            "torchrun --nproc_per_node N -m thoraclip COMMAND ..."
        )
    if wanted and wanted != process_count():
        raise ConfigError(
            f"processes = {wanted}, but {process_count()} was started; start them with: torchrun "
            f"--nproc_per_node {wanted} -m thoraclip COMMAND ..."
        )


class ProcessGroup:
    """The processes of one training run; with one process nothing is sent anywhere.

    Args:
        wanted: how many processes there must be; 0 takes as many as were launched.

    Raises:
        ConfigError: as in `require_launch`.
    """

    def __init__(self, *, wanted: int = 0) -> None:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        require_launch(wanted)
        launched = process_count()  # Accelerate changes the environment that it is read from
        self._accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no",  # precision is a setting of the run, not of the launcher
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
        if self.count != launched:
            raise ConfigError(
                f"{self.count} processes were started by a launcher that does not set WORLD_SIZE; start them with: "
                f"torchrun --nproc_per_node {self.count} -m thoraclip COMMAND ..."
            )

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
            return local[:rows]
        with _others_alive():
            whole: Tensor = self._accelerator.gather(local.detach().contiguous())
        return whole[:rows]

    def combine(self, encoders: Iterable[nn.Parameter], losses: Iterable[nn.Parameter]) -> None:
        """Sum the encoders' gradients over the processes; the loss's own are whole in each, and their mean is taken."""
        if self.count == 1:
            return
        for parameters, how in ((list(encoders), "sum"), (list(losses), "mean")):
            if not parameters:
                continue
            local = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            sizes = [gradient.numel() for gradient in local]
            with _others_alive():  # all tensors at once: one message, not hundreds
                whole: Tensor = self._accelerator.reduce(torch.cat([g.flatten() for g in local]), reduction=how)
            for parameter, gradient in zip(parameters, torch.split(whole, sizes), strict=True):
                parameter.grad = gradient.view_as(parameter).clone()

    def any(self, flag: bool) -> bool:
        """True in all where it is true in one."""
        return self.total(float(flag)) > 0

    def first(self, value: float) -> float:
        """The first process's value, in all: what they decide by must be the same number everywhere."""
        return self.total(value if self.is_main else 0.0)

    def total(self, value: float) -> float:
        """The sum over the processes, in all."""
        if self.count == 1:
            return value
        local = torch.tensor(value, dtype=torch.float64, device=self.device)
        with _others_alive():
            return float(self._accelerator.reduce(local, reduction="sum").item())

    def wait(self) -> None:
        """Until every process is here."""
        with _others_alive():
            self._accelerator.wait_for_everyone()


@contextmanager
def _others_alive() -> Iterator[None]:
    """Say so where another process has ended; what ended it, that one tells itself."""
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise TrainingError(
            "another process of this run has ended; mend what it says, and run the same command again to go on"
        ) from error
