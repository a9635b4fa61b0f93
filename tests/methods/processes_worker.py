"""What every process of `test_processes` computes: gradients of each loss, and weights after three steps.

torchrun --nproc_per_node 2 -m tests.methods.processes_worker FOLDER      writes FOLDER/found-2.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tests.methods.test_gradcache import BATCH, LOSSES, make_contrast
from torch import Tensor

from thoraclip.methods.contrast import Contrast
from thoraclip.methods.processes import ProcessGroup
from thoraclip.methods.training import Batch

ODD = np.arange(BATCH - 1)  # 23 images: no number of processes divides them; five texts
TWO_TEXTS = np.array([0, 5, 10, 15, 20, 1, 6])
CASES: tuple[tuple[str, str, np.ndarray, dict[str, Any]], ...] = (
    *((f"{loss}", "vision-text-dual-encoder", ODD, {"loss": loss}) for loss in LOSSES),
    *((f"clip-{loss}", "clip", ODD, {"loss": loss}) for loss in LOSSES),
    ("two-texts", "vision-text-dual-encoder", TWO_TEXTS, {"loss": "unicl"}),
    ("weighted", "vision-text-dual-encoder", ODD, {"loss": "infonce", "class_weight": "balanced"}),
    ("one-image", "vision-text-dual-encoder", np.array([3]), {"loss": "prompt_ce"}),
)
STEPS = 3


def compute(work: Path, *, chunk_size: int) -> dict[str, Tensor]:
    """`CASE/gradient/NAME` of every case, and `CASE/weight/NAME` of the four losses."""
    found: dict[str, Tensor] = {}
    for case, family, rows, settings in CASES:
        contrast = make_contrast(work, family=family, chunk_size=chunk_size, **settings)
        found |= {f"{case}/gradient/{name}": g for name, g in gradients(contrast, Batch(7, rows, rows)).items()}
        if case in LOSSES:
            found |= {f"{case}/weight/{name}": w for name, w in weights(contrast, rows).items()}
    return found


def gradients(contrast: Contrast, batch: Batch) -> dict[str, Tensor]:
    for parameter in contrast.tuned.parameters.values():
        parameter.grad = None
    loss = contrast.backward(batch)
    made = {n: p.grad.clone() for n, p in contrast.tuned.parameters.items() if p.grad is not None}
    return made | {"loss": torch.tensor(loss)}


def weights(contrast: Contrast, rows: np.ndarray) -> dict[str, Tensor]:
    parameters = contrast.tuned.parameters
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-4)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        contrast.backward(Batch(step, rows, rows))
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
    return {name: p.detach().clone() for name, p in parameters.items()}


def compute_wrongly(work: Path) -> dict[str, Tensor]:
    """As `compute` for one case, where padding counts as if it were images and texts of the batch."""
    contrast = make_contrast(work, loss="unicl", chunk_size=5)
    honest = ProcessGroup.own
    ProcessGroup.own = lambda self, rows: (honest(self, rows)[0], len(honest(self, rows)[0]))  # type: ignore[method-assign]
    try:
        return gradients(contrast, Batch(7, ODD, ODD))
    finally:
        ProcessGroup.own = honest  # type: ignore[method-assign]


def main() -> None:
    work = Path(sys.argv[1])
    group = ProcessGroup()
    index = int(group._accelerator.process_index)
    found = compute(work, chunk_size=5)
    found |= {f"wrong/gradient/{name}": gradient for name, gradient in compute_wrongly(work).items()}
    found["first"] = torch.tensor(group.first(index + 0.5))
    found["any"] = torch.tensor([group.any(index == 1), group.any(False)])
    save_file({n: t.contiguous() for n, t in found.items()}, work / f"found-{group.count}-{index}.safetensors")


if __name__ == "__main__":
    main()
