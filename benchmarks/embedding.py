"""Speed of the frozen path: from files against the plain way, encoding against what the processor can do, the pixel
cache.

    python -m benchmarks.embedding --model tiny-clip --images 600

Draws phantoms, prints ratios that were all measured in this one run; the machine's speed drops out.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.measure import MIB, in_turn, options, phantoms, ratio, seconds, vit_b_32
from benchmarks.results import Result
from torch import nn

import thoraclip
from benchmarks import plain
from thoraclip.data.batches import grey_batches, picture_source
from thoraclip.imaging import Preprocess
from thoraclip.methods.embed import usual_batch_size
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.methods.engines import by_threads, cut
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.heads import fit_lbfgs
from thoraclip.models.runtimes import RUNTIMES, TORCH, difference, is_installed
from thoraclip.tables.manifest import Manifest
from thoraclip.threads import cores

BATCH = usual_batch_size(torch.device("cpu"))
Greys = npt.NDArray[np.uint8]
_SQUARE = 4096
FP32_GOAL = 1.3
"""Of the fastest runtime."""


def encode(encoder: DualEncoder, batches: Sequence[Greys]) -> None:
    """Every batch, as `embed` has them encoded."""
    rows = [range(number * BATCH, number * BATCH + len(greys)) for number, greys in enumerate(batches)]
    for _ in by_threads(encoder, lambda some: batches[some.start // BATCH])(rows):
        pass


def tower_products(encoder: DualEncoder, images: int) -> tuple[int, int, Callable[[], Callable[[], object]]]:
    """The matrix products of an encoder's vision tower, and nothing else, in the encoder's precision.

    Returns:
        Multiply-adds an image of the whole tower; of its layers' weights alone; and a maker of calls that multiply one
        batch by these weights, of which every layer has its own.
    """
    config = encoder.model.config.vision_config
    width, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    patches = (encoder.preprocess.size // config.patch_size) ** 2
    tokens, dtype = patches + 1, torch.bfloat16 if encoder.precision == "bf16" else torch.float32
    shapes = [(width, width)] * 4 + [(width, hidden), (hidden, width)]  # (in, out) of q, k, v, o, fc1, fc2
    of_weights = layers * tokens * sum(a * b for a, b in shapes)
    whole = of_weights + 2 * layers * tokens**2 * width + patches * 3 * config.patch_size**2 * width

    def runner() -> Callable[[], object]:
        rows = {size: torch.randn(images * tokens, size).to(dtype) for size in (width, hidden)}
        weights = [torch.randn(b, a).to(dtype) for _ in range(layers) for a, b in shapes]
        return torch.inference_mode()(lambda: [nn.functional.linear(rows[w.shape[1]], w) for w in weights])

    return whole, of_weights, runner


@contextlib.contextmanager
def operators_have(count: int) -> Iterator[None]:
    """So many threads for an operator meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def against_products(encoder: DualEncoder, batches: Sequence[Greys], rounds: int) -> list[Result]:
    """Multiply-adds a second of the encoder over those of matrix products: large square ones, and its own shapes alone.

    The own shapes run by the faster of two ways to use all cores, one batch after another, every product right after
    the other.
    """
    batch, images, many = len(batches[0]), sum(map(len, batches)), cores()
    whole, of_weights, runner = tower_products(encoder, batch)
    runners = [runner() for _ in range(many)]
    several = max(1, len(batches) // many)
    square = torch.randn(_SQUARE, _SQUARE).to(torch.bfloat16 if encoder.precision == "bf16" else torch.float32)

    @operators_have(1)
    def each_core_one() -> None:
        with ThreadPoolExecutor(many) as pool:
            list(pool.map(lambda run: [run() for _ in range(several)], runners))

    @operators_have(many)
    def operators_share() -> None:
        for _ in range(several * many):
            runners[0]()

    ways = {
        "encoder": lambda: encode(encoder, batches),
        "square": operators_have(many)(lambda: [square @ square for _ in range(4)]),
        "operators share": operators_share,
        "cores share": each_core_one,
    }
    for work in ways.values():
        work()
    times = in_turn(ways, rounds)
    reached = whole * images / times["encoder"]
    large = 4 * _SQUARE**3 / times["square"]
    own = of_weights * several * many * batch / np.minimum(times["operators share"], times["cores share"])
    rate, kind = float(np.median(images / times["encoder"])), f"{encoder.precision} products of"
    speed, own_speed = (f"{np.median(found) / 1e9:.0f} G multiply-adds/s" for found in (large, own))
    squares = f"{kind} {_SQUARE} x {_SQUARE}, {speed} on {many} threads"
    shapes, name = f"{kind} its shapes, nothing between them: {own_speed}", "encoder alone, against its own products"
    return [
        Result("encoder alone", ratio(reached, large), 0.75, squares, rate, "images/s"),
        Result(name, ratio(reached, own), None, shapes, rate, "images/s"),
    ]


def from_files(manifest: Manifest, model: str, batches: Sequence[Greys], work: Path, rounds: int) -> list[Result]:
    """`thoraclip.embed` against the plain loop, and against decoding alone and encoding alone."""
    encoder, number = load_encoder(EncoderConfig(model=model)), itertools.count()
    tower, pictures = plain.load_tower(model), plain.Pictures(manifest.paths(), model)

    def ours() -> None:
        with tempfile.TemporaryDirectory(dir=work, prefix=f"embedded-{next(number)}-") as folder:
            thoraclip.embed(manifest, model=model, out=Path(folder) / "features")

    ours()  # the model is loaded, as the plain loop's is
    ways = {
        "embed": ours,
        "plain": lambda: list(plain.encoded(plain.loader(pictures, batch_size=BATCH), tower)),
        "decoding": lambda: list(grey_batches(manifest, encoder.preprocess, batch_size=BATCH)),
        "encoding": lambda: encode(encoder, batches),
    }
    times = in_turn(ways, rounds)
    rate = {name: float(np.median(len(manifest) / spent)) for name, spent in times.items()}
    loop = (
        f"Dataset + PIL + image processor, {plain.WORKERS} workers, fp32: {rate['plain']:.1f} images/s; ours in "
        f"{encoder.precision}"
    )
    apart = "decoding alone and encoding alone, one after the other on all cores"
    parts, decoding = times["decoding"] + times["encoding"], ratio(times["decoding"], times["embed"])
    share = "decoding and fitting, share of the time from files"
    return [
        Result("from files", ratio(times["plain"], times["embed"]), 3, loop, rate["embed"], "images/s"),
        Result("from files, against its parts", ratio(parts, times["embed"]), 0.9, apart, rate["embed"], "images/s"),
        Result.small(share, decoding, None, "the time from files", rate["decoding"], "images/s"),
    ]


def by_runtimes(manifest: Manifest, model: str, work: Path, rounds: int) -> list[Result]:
    """From files to features in fp32, by every installed runtime and by the plain loop, and what the numbers of each
    differ by."""
    encoder = load_encoder(EncoderConfig(model=model, precision="fp32"))
    tower, listed = plain.load_tower(model), plain.Pictures(manifest.paths(), model)
    ours, written = {TORCH: encoder}, work / "runtimes.onnx"
    encoder.write_onnx(written)
    for name in filter(is_installed, RUNTIMES):
        ours[name] = encoder.by_runtime(name, RUNTIMES[name].open(written, cores()))
    pictures = picture_source(manifest, encoder.preprocess)

    def features(name: str) -> list[tuple[npt.NDArray[np.float32], ...]]:
        return list(by_threads(ours[name], pictures)(cut(len(manifest), BATCH)))

    found = {name: features(name) for name in ours}  # and warm
    ways: dict[str, Callable[[], object]] = {name: partial(features, name) for name in ours}
    ways["plain"] = lambda: list(plain.encoded(plain.loader(listed, batch_size=BATCH), tower))
    times = in_turn(ways, rounds)
    best = min(ours, key=lambda name: float(np.median(times[name])))
    rows = []
    for name in ours:
        rate, plainly = (float(np.median(len(manifest) / times[one])) for one in (name, "plain"))
        told = f"the plain loop, {plainly:.1f} images/s; features within {difference(found[name], found[TORCH]):.0e}"
        over, goal = ratio(times["plain"], times[name]), FP32_GOAL if name == best else None
        rows.append(Result(f"from files in fp32, by {name}", over, goal, told, rate, "images/s"))
    return rows


def from_cache(manifest: Manifest, spec: Preprocess, work: Path, rounds: int) -> Result:
    """Reading the pixel cache against a big copy: those bytes that are read; the same number is written."""
    took = seconds(lambda: list(grey_batches(manifest, spec, batch_size=BATCH, pixels=work / "pixels")), rounds)
    source, target = np.ones(256 * MIB, np.uint8), np.zeros(256 * MIB, np.uint8)
    rate = len(manifest) * spec.size**2 / took / 1e9
    copied = source.nbytes / seconds(lambda: np.copyto(target, source), rounds) / 1e9
    against = f"a big copy in memory, {copied:.1f} GB/s"
    return Result("from a warm pixel cache", rate / copied, None, against, rate, "GB/s")


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """A CLIP of the shape ViT-B/32 at 224 pixels with random weights; with `quick` tiny-clip."""
    model = vit_b_32(work, quick=quick)
    manifest, rounds = phantoms(work, 24 if quick else 256), 1 if quick else 3
    encoder = load_encoder(EncoderConfig(model=model))
    batches = [greys for _, greys in grey_batches(manifest, encoder.preprocess, batch_size=BATCH)]
    return [
        *from_files(manifest, model, batches, work, rounds),
        *by_runtimes(manifest, model, work, rounds),
        *against_products(encoder, batches, 3 * rounds),
        from_cache(manifest, encoder.preprocess, work, rounds),
    ]


def main() -> None:
    given = options(__doc__, model="tiny-clip", images=600, epochs=30)
    with tempfile.TemporaryDirectory() as folder:
        manifest, warm = phantoms(Path(folder), given.images), Path(folder) / "pixels"
        exact, rough = (load_dual_encoder(given.model, precision=precision) for precision in ("fp32", "bf16"))
        read = partial(grey_batches, manifest, exact.preprocess, batch_size=BATCH)
        batches = [greys for _, greys in read(pixels=warm)]
        fp32, bf16 = (seconds(lambda one=one: encode(one, batches)) for one in (exact, rough))
        decoding = seconds(lambda: list(read())) / min(fp32, bf16)
        feeding = seconds(lambda: [exact.expand(greys) for _, greys in read(pixels=warm)]) / min(fp32, bf16)
        n = len(manifest)
        print(f"encoding: fp32 {n / fp32:.0f} images/s, bf16 {n / bf16:.0f} images/s, {fp32 / bf16:.2f} x fp32")
        print(f"shares of the faster one's time: decoding and resizing {decoding:.3f}, from a warm cache {feeding:.3f}")
        features = np.concatenate([exact.encode_greys(greys)[0] for greys in batches])
    labels, grid = manifest.label_set(), np.geomspace(10, 1e-4, 11).tolist()
    probe = seconds(lambda: fit_lbfgs(features, manifest.targets(labels), labels, l2=grid, weighting="none"))
    times = given.epochs * fp32 / (fp32 + probe)
    print(f"probe, 11 penalties: {probe:.2f} s; {given.epochs} epochs of encoding: {times:.1f} x encoding once and it")


if __name__ == "__main__":
    main()
