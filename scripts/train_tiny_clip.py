"""Train the shipped `tiny-clip` on phantoms whose captions never name a disease, and write its card.

    python scripts/train_tiny_clip.py --out src/thoraclip/models/assets/tiny-clip      # about 35 minutes on two cores

The model plays the part of a general CLIP under domain shift: it has learnt what its captions describe (view, build,
exposure, devices, markers), and nothing of the finding. Zero-shot on disease is therefore weak, its features are not.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from thoraclip.data.phantom import CLASSES, describe, draw_phantom
from thoraclip.imaging import Preprocess, fit, normalise

SIZE, VOCABULARY, CONTEXT = 128, 768, 64
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


def draw(task: tuple[int, int]) -> tuple[np.ndarray, dict]:
    """One phantom at 256 pixels, brought to the model's size as a user's picture would be."""
    seed, index = task
    rng = np.random.default_rng([seed, index])
    phantom = draw_phantom(CLASSES[index % len(CLASSES)], rng=rng, size=256, difficulty=float(rng.uniform(0.2, 0.8)))
    return fit(phantom.pixels, SPEC), {**phantom.attributes, "label": phantom.label}


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
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        projection_dim=128,
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
            "num_attention_heads": 2, "max_position_embeddings": CONTEXT, **ends,
        },
        vision_config={
            "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3,
            "image_size": SIZE, "patch_size": 16,
        },
    )  # fmt: skip
    model = CLIPModel(config)
    model.set_attn_implementation("eager")  # half as fast again as the fused kernel in bf16 on a CPU
    return model


def train(
    model: CLIPModel, tokenizer, pixels: np.ndarray, attributes: list[dict], *, steps: int, batch_size: int
) -> float:
    """Symmetric InfoNCE, fresh wording of the captions for every batch; returns the last hundred steps' mean loss."""
    rng = np.random.default_rng(TRAIN_SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.08)
    losses, began = [], time.monotonic()
    order: list[int] = []
    for step in range(1, steps + 1):
        if len(order) < batch_size:
            order = rng.permutation(len(pixels)).tolist()
        rows = [order.pop() for _ in range(batch_size)]
        texts = tokenizer(
            [describe(attributes[i], rng) for i in rows], padding=True, truncation=True, return_tensors="pt"
        )
        shift = rng.integers(-5, 6, 2)
        images = torch.from_numpy(normalise(np.roll(pixels[rows], tuple(shift), axis=(1, 2)), SPEC))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image = model.get_image_features(pixel_values=images).pooler_output
            text = model.get_text_features(
                input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]
            ).pooler_output
        image, text = (nn.functional.normalize(x.float(), dim=-1) for x in (image, text))
        logits = model.logit_scale.exp() * image @ text.T
        target = torch.arange(batch_size)
        loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        losses.append(loss.item())
        if step % 100 == 0:
            rate = step * batch_size / (time.monotonic() - began)
            print(f"step {step}/{steps}  loss {np.mean(losses[-100:]):.3f}  {rate:.0f} pairs/s", flush=True)
    return float(np.mean(losses[-100:]))


@torch.inference_mode()
def answer(model: CLIPModel, tokenizer, pixels: np.ndarray, attributes: list[dict]) -> dict[str, dict[str, float]]:
    """Zero-shot accuracy and balanced accuracy per question, on phantoms that training never saw."""
    features = torch.cat(
        [
            model.get_image_features(pixel_values=torch.from_numpy(normalise(chunk, SPEC))).pooler_output
            for chunk in np.array_split(pixels, 16)
        ]
    )
    features = nn.functional.normalize(features, dim=-1)
    results = {}
    for question, answers in QUESTIONS.items():
        vectors = []
        for prompts in answers.values():
            tokens = tokenizer(prompts, padding=True, return_tensors="pt")
            text = model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            vectors.append(nn.functional.normalize(nn.functional.normalize(text, dim=-1).mean(0), dim=-1))
        names = list(answers)
        truth = [true_answer(question, a) for a in attributes]
        rows = [i for i, name in enumerate(truth) if name in names]
        predicted = (features[rows] @ torch.stack(vectors).T).argmax(1).numpy()
        target = np.array([names.index(truth[i]) for i in rows])
        recall = [float((predicted[target == c] == c).mean()) for c in sorted(set(target))]
        results[question] = {
            "images": len(rows),
            "accuracy": float((predicted == target).mean()),
            "balanced_accuracy": float(np.mean(recall)),
        }
    return results


def true_answer(question: str, attributes: dict) -> str:
    if question == "disease":
        return str(attributes["label"])
    if question == "devices":  # one device or none: with two, either name is a right answer
        devices = attributes["devices"]
        return "none" if not devices else devices[0] if len(devices) == 1 else "several"
    return str(attributes[question])


def write_card(
    out: Path, *, images: int, steps: int, batch_size: int, loss: float, parameters: int, results: dict
) -> None:
    rows = "\n".join(
        f"| {q} | {len(QUESTIONS[q])} | {r['images']} | {r['accuracy']:.3f} | {r['balanced_accuracy']:.3f} |"
        for q, r in results.items()
    )
    (out / "README.md").write_text(
        f"""---
license: apache-2.0
library_name: transformers
tags: [clip, chest-x-ray, synthetic, zero-shot-image-classification]
---
# tiny-clip

**Research use only, not for diagnosis.** A CLIPModel of {parameters / 1e6:.2f} million parameters at {SIZE} x {SIZE} pixels (ViT, patch 16),
made so that ThoraCLIP can be tried and tested offline. It has never seen a patient.

**Data.** {images:,} synthetic radiographs (`thoraclip.data.phantom`, seed {TRAIN_SEED}), a third of each class. Their captions describe view,
build, exposure, devices, markers, border and noise in varied words, and never the finding.

**Training.** {steps:,} steps of {batch_size} pairs, symmetric InfoNCE, AdamW 1e-3 (one cycle, weight decay 0.1), bf16 autocast on two CPU cores;
mean loss of the last 100 steps {loss:.3f}. Stored as fp16. Script: `scripts/train_tiny_clip.py`.

**Numbers.** Zero-shot on {len_test(results):,} phantoms of another seed:

| question | answers | images | accuracy | balanced accuracy |
|---|---|---|---|---|
{rows}

**Limits.** It knows only phantoms. On real radiographs it is a weak feature extractor; use `openai/clip-vit-base-patch32` or larger for real work.
""",
        encoding="utf-8",
    )


def len_test(results: dict) -> int:
    return max(r["images"] for r in results.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--test-images", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(TRAIN_SEED)
    pixels, attributes = draw_set(TRAIN_SEED, arguments.images)
    test_pixels, test_attributes = draw_set(TEST_SEED, arguments.test_images)
    print(f"drew {len(pixels)} + {len(test_pixels)} phantoms", flush=True)
    wording = np.random.default_rng(TRAIN_SEED)
    tokenizer = train_tokenizer([describe(a, wording) for a in attributes])
    model = make_model(tokenizer)
    loss = train(model, tokenizer, pixels, attributes, steps=arguments.steps, batch_size=arguments.batch_size)
    model.eval().half()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": SIZE}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": SIZE, "width": SIZE}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(SPEC.mean), "image_std": list(SPEC.std), "do_convert_rgb": True,
    }  # fmt: skip
    (arguments.out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
    results = answer(model.float(), tokenizer, test_pixels, test_attributes)
    print(json.dumps(results, indent=2))
    write_card(
        arguments.out, images=arguments.images, steps=arguments.steps, batch_size=arguments.batch_size, loss=loss,
        parameters=sum(p.numel() for p in model.parameters()), results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
