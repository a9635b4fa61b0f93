"""Models in open_clip's format compute what open_clip computed (golden values), and what is not converted is refused.

The values are of `scripts/make_open_clip_golden.py`; `golden/open_clip.json` names the versions.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scripts.make_open_clip_golden import CASES, pixels, tokens
from tests.checkpoints import TINY
from tests.open_clip_weights import drawn

from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.files import OPEN_CLIP

GOLDEN = json.loads((Path(__file__).parent / "golden" / "open_clip.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-5  # fp32: the same products, in another order


def save(folder: Path, case: str, *, weights: str = "open_clip_model.safetensors", **changes: Any) -> Path:
    """A folder as open_clip's users have it, with a tokenizer; `changes` replace values of `model_cfg`'s tables."""
    kept = GOLDEN["cases"][case]
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(json.dumps(kept["model_cfg"]))
    for name, value in changes.items():
        model[name] = {**model[name], **value} if isinstance(value, dict) else value
    content = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}}
    (folder / OPEN_CLIP).write_text(json.dumps(content), encoding="utf-8")
    if kept["bert"]:
        (folder / "config.json").write_text(json.dumps(kept["bert"]), encoding="utf-8")
    save_file(drawn(kept["shapes"]), folder / weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    return folder


def load(folder: Path) -> DualEncoder:
    return load_dual_encoder(str(folder), precision="fp32", device="cpu")


def computed(encoder: DualEncoder, case: str) -> dict[str, np.ndarray]:
    """Our features and logits of the golden inputs; the texts once padded to the longest, once one by one."""
    ids = torch.from_numpy(tokens(GOLDEN["cases"][case]["model_cfg"]))
    with torch.inference_mode():
        pooled, image = encoder.image_features(torch.from_numpy(pixels()))
        text = encoder.text_features({"input_ids": ids, "attention_mask": (ids != 0).long()})
        single = [encoder.text_features({"input_ids": row[None, row != 0], "attention_mask": torch.ones(1, int((row != 0).sum()), dtype=torch.long)}) for row in ids]  # fmt: skip
        units = [torch.nn.functional.normalize(x, dim=-1) for x in (image, text)]
        logits = encoder.logit_scale * units[0] @ units[1].T
    np.testing.assert_allclose(torch.cat(single), text, atol=TOLERANCE)
    return {"pooled": pooled.numpy(), "image": image.numpy(), "text": text.numpy(), "logits": logits.numpy()}


def test_the_golden_file_has_every_case() -> None:
    assert {name: kept["model_cfg"] for name, kept in GOLDEN["cases"].items()} == CASES
    assert set(GOLDEN["versions"]) == {"open_clip_torch", "timm", "torch", "transformers"}


@pytest.mark.parametrize("case", CASES)
def test_features_and_logits_are_those_of_open_clip(case: str, tmp_path: Path) -> None:
    found, expected = computed(load(save(tmp_path / "m", case)), case), GOLDEN["cases"][case]
    for name in ("image", "text", "logits"):
        np.testing.assert_allclose(found[name], expected[name], atol=TOLERANCE, rtol=0)
