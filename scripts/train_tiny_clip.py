"""Train the shipped `tiny-clip` on phantoms whose captions never name a disease, and write its card.

    python scripts/train_tiny_clip.py --out src/thoraclip/models/assets/tiny-clip   # 35 minutes on two idle cores

The model plays the part of a general CLIP under domain shift: it has learnt what its captions describe (view, build,
exposure, devices, markers), and nothing of the finding. Zero-shot on disease is therefore weak, its features are not.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from thoraclip.data.phantom import CLASSES, describe, draw_phantom, drawing
from thoraclip.data.phantom.attributes import DEVICES, Pose
from thoraclip.data.phantom.lines import draw_devices
from thoraclip.imaging import Preprocess, fit, normalise
from thoraclip.models.files import locate

SIZE, PATCH, VOCABULARY, CONTEXT = 128, 16, 768, 64
BATCH, LINE_STEPS = 128, 350
SPEC = Preprocess(size=SIZE)
TRAIN_SEED, TEST_SEED = 101, 202
DEVICE_PROMPTS = {
    "none": ["chest X-ray without devices.", "chest X-ray, no lines or tubes."],
    "ECG leads": ["chest X-ray with ECG leads.", "chest X-ray with monitoring electrodes and wires."],
    "central venous line": ["chest X-ray with a central venous line.", "chest X-ray with a central catheter."],
    "endotracheal tube": ["chest X-ray with an endotracheal tube.", "chest X-ray with a breathing tube."],
    "pacemaker": ["chest X-ray with a pacemaker.", "chest X-ray with an implanted pacemaker."],
}
QUESTIONS = {
    "view": {
        "PA": ["PA chest X-ray.", "upright PA view of the chest.", "posteroanterior chest radiograph."],
        "AP": ["AP chest X-ray.", "supine AP view of the chest.", "anteroposterior chest radiograph."],
    },
    "devices": DEVICE_PROMPTS,
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
    **{f"{name} or none": {key: DEVICE_PROMPTS[key] for key in ("none", name)} for name in DEVICES},
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

    label, difficulty = CLASSES[index % len(CLASSES)], float(rng.uniform(0.2, 0.8))
    with mock.patch.object(drawing, "draw_devices", draw_and_note):
        phantom = draw_phantom(label, rng=rng, size=256, difficulty=difficulty)
    return fit(phantom.pixels, SPEC), {**phantom.attributes, "label": phantom.label, "device_patches": patches}


def draw_set(seed: int, count: int) -> tuple[np.ndarray, list[dict]]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        drawn = list(pool.map(draw, [(seed, i) for i in range(count)], chunksize=32))
    return np.stack([pixels for pixels, _ in drawn]), [attributes for _, attributes in drawn]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in CLIP's form: lower case, word ends marked, start and end tokens; any text
    encodes."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    spaces, lower = normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, lower])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, of_bytes])
    alphabet = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "end_of_word_suffix": "</w>"}
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[start, end], show_progress=False, **alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **tokens)


def make_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    def tower(width: int, layers: int, heads: int) -> dict[str, int]:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width}
        return sizes | {"num_hidden_layers": layers, "num_attention_heads": heads}

    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = tower(128, 3, 2) | {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT} | ends
    vision = tower(192, 6, 3) | {"image_size": SIZE, "patch_size": PATCH}
    model = CLIPModel(CLIPConfig(projection_dim=128, text_config=text, vision_config=vision))
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
    weight = embedding.weight.sum(dim=1).flatten(1)
    spread = float((torch.from_numpy(patches).float() @ weight.T).std())
    extra = torch.from_numpy((mix @ filters.T).reshape(-1, 1, PATCH, PATCH)).float().repeat(1, 3, 1, 1) / 3
    embedding.weight.add_(spread * extra)


class AttributeHeads(nn.Module):
    """Auxiliary classifiers of what the captions say, thrown away after training.

    InfoNCE alone leaves thin and rare things (a line, a pacemaker) unseen: other words of a caption tell pairs apart.
    So the pooled feature is asked for view, exposure, build and devices, and every patch for the devices that cross it.
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

    def forward(self, pooled: Tensor, patches: Tensor, attributes: list[dict]) -> tuple[Tensor, list[float]]:
        """Loss, and its parts for the log: attributes, devices, patches."""
        named = torch.zeros(())
        for question, names in self.classes.items():
            target = torch.tensor([names.index(a[question]) for a in attributes])
            named = named + nn.functional.cross_entropy(self.linear[question](pooled), target) / 3
        held = torch.tensor([[float(name in a["devices"]) for name in DEVICES] for a in attributes])
        devices = nn.functional.binary_cross_entropy_with_logits(self.linear["devices"](pooled), held)
        where = self.crossed(patches, attributes)
        return named + 4 * devices + 4 * where, [named.item(), devices.item(), where.item()]

    def crossed(self, patches: Tensor, attributes: list[dict]) -> Tensor:
        """Loss of the question which devices cross each patch; `patches` f32[B, patches, width] from the second
        block."""
        target = torch.from_numpy(np.stack([a["device_patches"] for a in attributes])).float()
        logits = self.linear["patches"](patches) + self.prior
        return nn.functional.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(4.0))


def row_batches(attributes: list[dict], rng: np.random.Generator, draw_by: str) -> Iterator[list[int]]:
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
    while draw_by == "epoch":
        if len(order) < BATCH:
            order = rng.permutation(len(attributes)).tolist()
        yield [order.pop() for _ in range(BATCH)]
    while True:
        yield rng.choice(len(attributes), BATCH, replace=False, p=weights / weights.sum()).tolist()


def optimise(
    loss_of: Callable[[list[int]], tuple[Tensor, list[float]]],
    tuned: nn.Module,
    heads: AttributeHeads | None,
    batches: Iterator[list[int]],
    *,
    steps: int,
    rates: tuple[float, float],
    decay: float,
    betas: tuple[float, float],
    warm: float,
) -> float:
    """AdamW on one cycle; `loss_of` gives a loss and its parts, of which the mean of the first over 100 steps is
    returned."""
    modules = [tuned, heads] if heads else [tuned]
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip(modules, rates, strict=False)]
    optimizer = torch.optim.AdamW(groups, weight_decay=decay, betas=betas)
    peaks = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=steps, pct_start=warm)
    parts: list[list[float]] = []
    for step, rows in zip(range(1, steps + 1), batches, strict=False):
        loss, told = loss_of(rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if isinstance(tuned, CLIPModel):
            tuned.logit_scale.data.clamp_(max=float(np.log(100)))
        parts.append(told)
        if step % 50 == 0:
            print(f"step {step}/{steps}  losses {np.mean(parts[-50:], axis=0).round(3).tolist()}", flush=True)
    return float(np.mean(parts[-100:], axis=0)[0])


def learn_lines(model: CLIPModel, heads: AttributeHeads, pixels: np.ndarray, attributes: list[dict]) -> None:
    """Teach the patch embedding and the first two blocks to see devices, before the whole tower is tuned."""
    tower = model.vision_model
    lower = nn.ModuleList([tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:2]])

    def loss_of(rows: list[int]) -> tuple[Tensor, list[float]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = tower.pre_layrnorm(tower.embeddings(torch.from_numpy(normalise(pixels[rows], SPEC))))
            for block in tower.encoder.layers[:2]:
                hidden = block(hidden, attention_mask=None)
        loss = heads.crossed(hidden[:, 1:].float(), [attributes[i] for i in rows])
        return loss, [loss.item()]

    how = {"rates": (2e-3, 2e-3), "decay": 0.05, "betas": (0.9, 0.999), "warm": 0.1}
    batches = row_batches(attributes, np.random.default_rng([TRAIN_SEED, 2]), "devices")
    optimise(loss_of, lower, heads, batches, steps=LINE_STEPS, **how)


def train(model: CLIPModel, tokenizer, pixels: np.ndarray, attributes: list[dict], stage: int, steps: int) -> dict:
    """One stage of symmetric InfoNCE, captions worded afresh for every batch.

    1: whole captions. 2: see lines, then half of the captions shortened, and `AttributeHeads`. 3: the same, rare
    devices more often. 4: the same, as often as they are.
    """
    rate, draw_by = {1: (1e-3, "epoch"), 2: (7e-4, "devices"), 3: (4e-4, "rarity"), 4: (3e-4, "epoch")}[stage]
    heads = AttributeHeads(model.config.vision_config.hidden_size) if stage > 1 else None
    if stage == 2:
        sharpen_patches(model, pixels)
        learn_lines(model, heads, pixels, attributes)
    rng = np.random.default_rng([TRAIN_SEED, int(stage > 1), round(rate * 1e5)])

    def loss_of(rows: list[int]) -> tuple[Tensor, list[float]]:
        shown = [attributes[i] for i in rows]
        captions = [describe(a, rng) for a in shown]
        if heads:
            captions = [shorten(c, rng) if rng.uniform() < 0.5 else c for c in captions]
        texts = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        shift = rng.integers(-5, 6, 2)
        images = torch.from_numpy(normalise(np.roll(pixels[rows], tuple(shift), axis=(1, 2)), SPEC))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = model.vision_model(pixel_values=images, output_hidden_states=bool(heads))
            image = model.visual_projection(seen.pooler_output)
            text = model.get_text_features(**{k: texts[k] for k in ("input_ids", "attention_mask")}).pooler_output
        image, text = (nn.functional.normalize(x.float(), dim=-1) for x in (image, text))
        logits = model.logit_scale.exp() * image @ text.T
        target = torch.arange(BATCH)
        loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
        if not heads:
            return loss, [loss.item()]
        extra, parts = heads(seen.pooler_output.float(), seen.hidden_states[2][:, 1:].float(), shown)
        return loss + extra, [loss.item(), *parts]

    how = {"rates": (rate, 4 * rate), "decay": 0.1, "betas": (0.9, 0.98), "warm": 0.08}
    loss = optimise(loss_of, model, heads, row_batches(attributes, rng, draw_by), steps=steps, **how)
    return {"stage": stage, "steps": steps, "rate": rate, "loss": loss}


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


def write_card(out: Path, stages: list[dict], results: dict[str, dict[str, float]]) -> None:
    """The card of the shipped model, in which the rows of both tables are those of this training."""
    history = "".join(f"| {s['stage']} | {s['steps']:,} | {s['rate']:g} | {s['loss']:.2f} |\n" for s in stages)
    rows = "".join(
        f"| {q} | {len(QUESTIONS[q])} | {r['images']} | {r['accuracy']:.3f} | {r['balanced_accuracy']:.3f} |\n"
        for q, r in results.items()
    )
    card = (Path(locate("tiny-clip")[0]) / "README.md").read_text(encoding="utf-8")
    for first, new in (("stage", history), ("question", rows)):
        card = re.sub(rf"(\| {first} \|.*\n\|[-|]+\n)(\|.*\n)+", lambda found, new=new: found[1] + new, card)
    (out / "README.md").write_text(card, encoding="utf-8")


def save(out: Path, model: CLIPModel, tokenizer) -> None:
    """Weights in fp16, tokenizer and image processor, in Transformers format."""
    out.mkdir(parents=True, exist_ok=True)
    model.eval().half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    steps = {f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    levels = {"resample": 3, "rescale_factor": 1 / 255, "image_mean": list(SPEC.mean), "image_std": list(SPEC.std)}
    processor = {"image_processor_type": "CLIPImageProcessor"} | steps | sizes | levels
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--test-images", type=int, default=1500)
    parser.add_argument("--steps", type=int, nargs=4, default=[1600, 700, 300, 300], help="of the four stages")
    given = parser.parse_args()
    torch.manual_seed(TRAIN_SEED)
    pixels, attributes = draw_set(TRAIN_SEED, given.images)
    test_pixels, test_attributes = draw_set(TEST_SEED, given.test_images)
    print(f"drew {len(pixels)} + {len(test_pixels)} phantoms", flush=True)
    wording = np.random.default_rng(TRAIN_SEED)
    tokenizer = train_tokenizer([describe(a, wording) for a in attributes])
    model = make_model(tokenizer)
    stages = [train(model, tokenizer, pixels, attributes, *stage) for stage in enumerate(given.steps, start=1)]
    save(given.out, model, tokenizer)
    (given.out / "training.json").write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")
    results = answer(model.float(), tokenizer, test_pixels, test_attributes)
    print(json.dumps(results, indent=2))
    write_card(given.out, stages, results)


if __name__ == "__main__":
    main()
