"""Train the shipped `tiny-clip` on phantoms whose captions never name a disease, and write its card.

    python scripts/train_tiny_clip.py --out src/thoraclip/models/assets/tiny-clip      # about 35 minutes on two idle cores

The model plays the part of a general CLIP under domain shift: it has learnt what its captions describe (view, build,
exposure, devices, markers), and nothing of the finding. Zero-shot on disease is therefore weak, its features are not.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from thoraclip.data.phantom import CLASSES, describe, draw_phantom, drawing
from thoraclip.data.phantom.body import Pose
from thoraclip.data.phantom.lines import DEVICES, draw_devices
from thoraclip.imaging import Preprocess, fit, normalise

SIZE, PATCH, VOCABULARY, CONTEXT = 128, 16, 768, 64
BATCH, LINE_STEPS = 128, 350
SPEC = Preprocess(size=SIZE)
TRAIN_SEED, TEST_SEED = 101, 202
QUESTIONS = {
    "view": {
        "PA": ["PA chest X-ray.", "upright PA view of the chest.", "posteroanterior chest radiograph."],
        "AP": ["AP chest X-ray.", "supine AP view of the chest.", "anteroposterior chest radiograph."],
    },
    "devices": {
        "none": ["chest X-ray without devices.", "chest X-ray, no lines or tubes."],
        "ECG leads": ["chest X-ray with ECG leads.", "chest X-ray with monitoring electrodes and wires."],
        "central venous line": ["chest X-ray with a central venous line.", "chest X-ray with a central catheter."],
        "endotracheal tube": ["chest X-ray with an endotracheal tube.", "chest X-ray with a breathing tube."],
        "pacemaker": ["chest X-ray with a pacemaker.", "chest X-ray with an implanted pacemaker."],
    },
    "exposure": {
        "under": ["underexposed, rather bright chest X-ray."],
        "normal": ["well exposed chest X-ray."],
        "over": ["overexposed, rather dark chest X-ray."],
    },
    "build": {
        "slim": ["chest X-ray of a slim patient."],
        "average": ["chest X-ray of a patient of average build."],
        "large": ["chest X-ray of a large patient."],
    },
    "disease": {
        "COVID-19": ["a chest X-ray showing COVID-19."],
        "Non-COVID": ["a chest X-ray showing pneumonia."],
        "Normal": ["a chest X-ray showing no abnormality."],
    },
}
QUESTIONS |= {
    f"{name} or none": {"none": QUESTIONS["devices"]["none"], name: QUESTIONS["devices"][name]} for name in DEVICES
}


def draw(task: tuple[int, int]) -> tuple[np.ndarray, dict]:
    """One phantom at 256 pixels, brought to the model's size as a user's picture would be.

    Its attributes also hold `device_patches`, bool[patches, devices]: where each device runs.
    """
    seed, index = task
    rng = np.random.default_rng([seed, index])
    patches = np.zeros(((SIZE // PATCH) ** 2, len(DEVICES)), dtype=bool)

    def draw_and_note(devices: tuple[str, ...], pose: Pose, size: int, stream: np.random.Generator) -> np.ndarray:
        held, before = [name for name in DEVICES if name in devices], np.zeros((size, size))
        for count, name in enumerate(held, start=1):  # drawn one after the other from one stream: a prefix is a part
            after = draw_devices(tuple(held[:count]), pose, size, copy.deepcopy(stream))
            block = size * PATCH // SIZE
            cells = (after - before).reshape(size // block, block, size // block, block).max(axis=(1, 3)) > 0.2
            patches[:, DEVICES.index(name)] = cells.ravel()
            before = after
        return draw_devices(devices, pose, size, stream)

    with mock.patch.object(drawing, "draw_devices", draw_and_note):
        phantom = draw_phantom(
            CLASSES[index % len(CLASSES)], rng=rng, size=256, difficulty=float(rng.uniform(0.2, 0.8))
        )
    return fit(phantom.pixels, SPEC), {**phantom.attributes, "label": phantom.label, "device_patches": patches}


def draw_set(seed: int, count: int) -> tuple[np.ndarray, list[dict]]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        drawn = list(pool.map(draw, [(seed, i) for i in range(count)], chunksize=32))
    return np.stack([pixels for pixels, _ in drawn]), [attributes for _, attributes in drawn]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in CLIP's form: lower case, word ends marked, start and end tokens; any text encodes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|startoftext|>", "<|endoftext|>"], end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    start, end = tokenizer.token_to_id("<|startoftext|>"), tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
        pad_token="<|endoftext|>", model_max_length=CONTEXT,
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPConfig(
        projection_dim=128,
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
            "num_attention_heads": 2, "max_position_embeddings": CONTEXT, **ends,
        },
        vision_config={
            "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3,
            "image_size": SIZE, "patch_size": PATCH,
        },
    )  # fmt: skip
    model = CLIPModel(config)
    model.set_attn_implementation("eager")  # half as fast again as the fused kernel in bf16 on a CPU
    return model


def shorten(caption: str, rng: np.random.Generator) -> str:
    """Keep some of a caption's parts, so that a prompt that names one thing is not foreign to the text tower."""
    head, *rest = caption.rstrip(".").split(", ")
    kept = [part for part in rest if rng.uniform() < 0.4]
    head = head.split(" of a")[0] if rng.uniform() < 0.5 else head
    head = "Chest X-ray" if kept and rng.uniform() < 0.5 else head
    joint = " " if kept and kept[0].startswith("with") and rng.uniform() < 0.7 else ", "
    return head + (joint if kept else "") + ", ".join(kept) + "."


@torch.no_grad()
def sharpen_patches(model: CLIPModel, pixels: np.ndarray) -> None:
    """Add whitened high frequencies to the patch embedding, so that a thin line counts beside the lungs' brightness.

    The principal components of training patches beyond the first 8 are scaled to unit variance and mixed at random.
    """
    embedding = model.vision_model.embeddings.patch_embedding
    grey = normalise(pixels[:2000], SPEC).mean(axis=1)
    cells = SIZE // PATCH
    patches = grey.reshape(-1, cells, PATCH, cells, PATCH).transpose(0, 1, 3, 2, 4).reshape(-1, PATCH * PATCH)
    variance, directions = np.linalg.eigh(np.cov(patches.T))
    fine = np.argsort(variance)[::-1][8:]
    filters = directions[:, fine] / np.sqrt(variance[fine] + 0.02)
    mix = np.random.default_rng(TRAIN_SEED).normal(size=(embedding.out_channels, len(fine))) / np.sqrt(len(fine))
    spread = float(
        (torch.from_numpy(patches).float() @ embedding.weight.sum(dim=1).reshape(len(embedding.weight), -1).T).std()
    )
    extra = torch.from_numpy((mix @ filters.T).reshape(-1, 1, PATCH, PATCH)).float().repeat(1, 3, 1, 1) / 3
    embedding.weight.add_(spread * extra)


class AttributeHeads(nn.Module):
    """Auxiliary classifiers of what the captions say, thrown away after training.

    InfoNCE alone leaves thin and rare things (a line, a pacemaker) unseen: other words of a caption tell pairs apart. So
    the pooled feature is asked for view, exposure, build and devices, and every patch for the devices that cross it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = {q: list(a) for q, a in QUESTIONS.items() if q in {"view", "exposure", "build"}}
        self.linear = nn.ModuleDict({q: nn.Linear(width, len(names)) for q, names in self.classes.items()})
        self.linear["devices"] = nn.Linear(width, len(DEVICES))
        self.linear["patches"] = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, len(DEVICES))
        )
        self.prior = nn.Parameter(torch.zeros((SIZE // PATCH) ** 2, len(DEVICES)))

    def forward(
        self, pooled: torch.Tensor, patches: torch.Tensor, attributes: list[dict]
    ) -> tuple[torch.Tensor, list[float]]:
        """Loss, and its parts for the log: attributes, devices, patches."""
        named = torch.zeros(())
        for question, names in self.classes.items():
            target = torch.tensor([names.index(a[question]) for a in attributes])
            named = named + nn.functional.cross_entropy(self.linear[question](pooled), target) / 3
        held = torch.tensor([[float(name in a["devices"]) for name in DEVICES] for a in attributes])
        devices = nn.functional.binary_cross_entropy_with_logits(self.linear["devices"](pooled), held)
        where = self.crossed(patches, attributes)
        return named + 4 * devices + 4 * where, [named.item(), devices.item(), where.item()]

    def crossed(self, patches: torch.Tensor, attributes: list[dict]) -> torch.Tensor:
        """Loss of the question which devices cross each patch; `patches` f32[B, patches, width] from the second block."""
        target = torch.from_numpy(np.stack([a["device_patches"] for a in attributes])).float()
        logits = self.linear["patches"](patches) + self.prior
        return nn.functional.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(4.0))


def learn_lines(
    model: CLIPModel, heads: AttributeHeads, pixels: np.ndarray, attributes: list[dict], *, steps: int, batch_size: int
) -> None:
    """Teach the patch embedding and the first two blocks to see devices, before the whole tower is tuned."""
    rng = np.random.default_rng([TRAIN_SEED, 2])
    tower = model.vision_model
    lower = nn.ModuleList([tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:2]])
    optimizer = torch.optim.AdamW([*lower.parameters(), *heads.parameters()], lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    losses: list[float] = []
    for step, rows in zip(
        range(1, steps + 1), row_batches(attributes, batch_size, rng, draw_by="devices"), strict=False
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = tower.pre_layrnorm(tower.embeddings(torch.from_numpy(normalise(pixels[rows], SPEC))))
            for block in tower.encoder.layers[:2]:
                hidden = block(hidden, attention_mask=None)
        loss = heads.crossed(hidden[:, 1:].float(), [attributes[i] for i in rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(lower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"lines, step {step}/{steps}  loss {np.mean(losses[-50:]):.3f}", flush=True)


def row_batches(
    attributes: list[dict], batch_size: int, rng: np.random.Generator, *, draw_by: str
) -> Iterator[list[int]]:
    """Endless batches of rows.

    `epoch`: every image once, in random order; `devices`: an image with d devices is 1 + 3 d times as likely as one
    without; `rarity`: nearly half without a device, the rest shared by the four devices, however rare.
    """
    held = [a["devices"] for a in attributes]
    share = {name: np.mean([name in h for h in held]) for name in DEVICES}
    bare = np.mean([not h for h in held])
    by_rarity = [max((0.55 / len(DEVICES) / share[name] for name in h), default=0.45 / bare) for h in held]
    weights = np.array(by_rarity if draw_by == "rarity" else [1 + 3 * len(h) for h in held], dtype=float)
    order: list[int] = []
    while True:
        if draw_by != "epoch":
            yield rng.choice(len(attributes), batch_size, replace=False, p=weights / weights.sum()).tolist()
            continue
        if len(order) < batch_size:
            order = rng.permutation(len(attributes)).tolist()
        yield [order.pop() for _ in range(batch_size)]


def train(
    model: CLIPModel,
    tokenizer,
    pixels: np.ndarray,
    attributes: list[dict],
    *,
    steps: int,
    batch_size: int,
    rate: float,
    heads: AttributeHeads | None = None,
    draw_by: str = "epoch",
) -> float:
    """One stage of symmetric InfoNCE, captions worded afresh for every batch; returns the last hundred steps' mean loss.

    With `heads` (stages 2 to 4) it shortens half of the captions and adds `AttributeHeads`; `draw_by` as in `row_batches`.
    """
    second = heads is not None
    rng = np.random.default_rng([TRAIN_SEED, int(second), round(rate * 1e5)])
    groups = [{"params": model.parameters(), "lr": rate}]
    groups += [{"params": heads.parameters(), "lr": 4 * rate}] if heads else []
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1, betas=(0.9, 0.98))
    peaks = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=steps, pct_start=0.08)
    losses, aside = [], []
    for step, rows in zip(range(1, steps + 1), row_batches(attributes, batch_size, rng, draw_by=draw_by), strict=False):
        captions = [describe(attributes[i], rng) for i in rows]
        if second:
            captions = [shorten(c, rng) if rng.uniform() < 0.5 else c for c in captions]
        texts = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        shift = rng.integers(-5, 6, 2)
        images = torch.from_numpy(normalise(np.roll(pixels[rows], tuple(shift), axis=(1, 2)), SPEC))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = model.vision_model(pixel_values=images, output_hidden_states=second)
            image = model.visual_projection(seen.pooler_output)
            text = model.get_text_features(**{k: texts[k] for k in ("input_ids", "attention_mask")}).pooler_output
        image, text = (nn.functional.normalize(x.float(), dim=-1) for x in (image, text))
        logits = model.logit_scale.exp() * image @ text.T
        target = torch.arange(batch_size)
        loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
        extra, parts = torch.zeros(()), [0.0]
        if heads:
            extra, parts = heads(
                seen.pooler_output.float(), seen.hidden_states[2][:, 1:].float(), [attributes[i] for i in rows]
            )
        optimizer.zero_grad(set_to_none=True)
        (loss + extra).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        losses.append(loss.item())
        aside.append(parts)
        if step % 50 == 0:
            said = f"loss {np.mean(losses[-50:]):.3f}  auxiliary {np.mean(aside[-50:], axis=0).round(3).tolist()}"
            print(f"step {step}/{steps}  {said}", flush=True)
    return float(np.mean(losses[-100:]))


@torch.inference_mode()
def answer(model: CLIPModel, tokenizer, pixels: np.ndarray, attributes: list[dict]) -> dict[str, dict[str, float]]:
    """Zero-shot accuracy and balanced accuracy per question, on phantoms that training never saw."""
    chunks = (torch.from_numpy(normalise(chunk, SPEC)) for chunk in np.array_split(pixels, 16))
    features = torch.cat([model.get_image_features(pixel_values=chunk).pooler_output for chunk in chunks])
    features = nn.functional.normalize(features, dim=-1)
    results = {}
    for question, answers in QUESTIONS.items():
        vectors = []
        for prompts in answers.values():
            tokens = tokenizer(prompts, padding=True, return_tensors="pt")
            text = model.get_text_features(**{k: tokens[k] for k in ("input_ids", "attention_mask")}).pooler_output
            vectors.append(nn.functional.normalize(nn.functional.normalize(text, dim=-1).mean(0), dim=-1))
        names = list(answers)
        truth = [true_answer(question, a) for a in attributes]
        rows = [i for i, name in enumerate(truth) if name in names]
        predicted = (features[rows] @ torch.stack(vectors).T).argmax(1).numpy()
        target = np.array([names.index(truth[i]) for i in rows])
        recall = [float((predicted[target == c] == c).mean()) for c in sorted(set(target))]
        accuracy, balanced = float((predicted == target).mean()), float(np.mean(recall))
        results[question] = {"images": len(rows), "accuracy": accuracy, "balanced_accuracy": balanced}
    return results


def true_answer(question: str, attributes: dict) -> str:
    if question == "disease":
        return str(attributes["label"])
    devices = attributes["devices"]
    if question == "devices" or question.endswith(" or none"):  # with two devices, either name is a right answer
        return "none" if not devices else devices[0] if len(devices) == 1 else "several"
    return str(attributes[question])


def write_card(out: Path, stages: list[dict], results: dict, *, parameters: int, images: int, test_images: int) -> None:
    """The model card: what it saw, how it was trained, what it can and cannot."""
    rows = "\n".join(
        f"| {q} | {len(QUESTIONS[q])} | {r['images']} | {r['accuracy']:.3f} | {r['balanced_accuracy']:.3f} |"
        for q, r in results.items()
    )
    history = "\n".join(f"| {s['stage']} | {s['steps']:,} | {s['rate']:g} | {s['loss']:.2f} |" for s in stages)
    (out / "README.md").write_text(
        f"""---
license: apache-2.0
library_name: transformers
tags: [clip, chest-x-ray, synthetic, zero-shot-image-classification]
---
# tiny-clip

**Research use only, not for diagnosis.** A CLIPModel of {parameters / 1e6:.2f} million parameters at {SIZE} x {SIZE} pixels (ViT, patch {PATCH}),
made so that ThoraCLIP can be tried and tested offline. It has never seen a patient.

**Data.** {images:,} synthetic radiographs (`thoraclip.data.phantom`, seed {TRAIN_SEED}), a third of each class. Their captions describe view,
build, exposure, devices, markers, border and noise in varied words, and never the finding. No label of a disease is used anywhere.

**Training.** `scripts/train_tiny_clip.py`: symmetric InfoNCE on batches of {BATCH}, AdamW (one cycle, weight decay 0.1), bf16 autocast on two CPU
cores. Stage 1 learns from whole captions. Before stage 2, high frequencies are added to the patch embedding and the first two blocks learn
for {LINE_STEPS} steps which devices cross each patch: contrast alone never saw a thin line. In stages 2 to 4 half of the captions are shortened
and, in 2 and 3, images with devices (in 3 with rare ones) drawn more often; auxiliary classifiers of view, exposure, build and devices, the
last also patch by patch, are trained along and thrown away. Stored as fp16.

| stage | steps | peak rate | contrastive loss, last 100 steps |
|---|---|---|---|
{history}

**Numbers.** Zero-shot, prompts as in the script, on {test_images:,} phantoms of seed {TEST_SEED} (for devices: those with one device or none):

| question | answers | images | accuracy | balanced accuracy |
|---|---|---|---|---|
{rows}

**Limits.** It knows only phantoms. On real radiographs it is a weak feature extractor; use `openai/clip-vit-base-patch32` or larger for real work.
""",
        encoding="utf-8",
    )


def run_stage(
    stage: int, model: CLIPModel, tokenizer, pixels: np.ndarray, attributes: list[dict], *, steps: int
) -> dict:
    """1: whole captions. 2: see lines, then shortened captions and auxiliary classifiers. 3: the same, rare devices more often. 4: the same, as often as they are."""
    common = {"steps": steps, "batch_size": BATCH, "rate": {1: 1e-3, 2: 7e-4, 3: 4e-4, 4: 3e-4}[stage]}
    if stage == 1:
        loss = train(model, tokenizer, pixels, attributes, **common)
        return {"stage": 1, "steps": steps, "rate": common["rate"], "loss": loss}
    heads = AttributeHeads(model.config.vision_config.hidden_size)
    if stage == 2:
        sharpen_patches(model, pixels)
        learn_lines(model, heads, pixels, attributes, steps=LINE_STEPS, batch_size=BATCH)
    draw_by = {2: "devices", 3: "rarity", 4: "epoch"}[stage]
    loss = train(model, tokenizer, pixels, attributes, **common, heads=heads, draw_by=draw_by)
    return {"stage": stage, "steps": steps, "rate": common["rate"], "loss": loss}


def save(out: Path, model: CLIPModel, tokenizer) -> None:
    """Weights in fp16, tokenizer and image processor, in Transformers format."""
    out.mkdir(parents=True, exist_ok=True)
    model.eval().half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": SIZE}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": SIZE, "width": SIZE}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(SPEC.mean), "image_std": list(SPEC.std), "do_convert_rgb": True,
    }  # fmt: skip
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--test-images", type=int, default=1500)
    parser.add_argument("--steps", type=int, nargs=4, default=[1600, 700, 300, 300], help="of the four stages")
    arguments = parser.parse_args()
    torch.manual_seed(TRAIN_SEED)
    pixels, attributes = draw_set(TRAIN_SEED, arguments.images)
    test_pixels, test_attributes = draw_set(TEST_SEED, arguments.test_images)
    print(f"drew {len(pixels)} + {len(test_pixels)} phantoms", flush=True)
    wording = np.random.default_rng(TRAIN_SEED)
    tokenizer = train_tokenizer([describe(a, wording) for a in attributes])
    model = make_model(tokenizer)
    stages = [
        run_stage(stage, model, tokenizer, pixels, attributes, steps=steps)
        for stage, steps in enumerate(arguments.steps, start=1)
    ]
    save(arguments.out, model, tokenizer)
    (arguments.out / "training.json").write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")
    results = answer(model.float(), tokenizer, test_pixels, test_attributes)
    print(json.dumps(results, indent=2))
    parameters = sum(p.numel() for p in model.parameters())
    sizes = {"images": arguments.images, "test_images": arguments.test_images}
    write_card(arguments.out, stages, results, parameters=parameters, **sizes)


if __name__ == "__main__":
    main()
