"""`probe`: a linear classifier on the frozen vision tower's features, with the classes' texts if asked.

Features are read once from the embedding cache; the penalty (or, for AdamW, the epoch) is chosen by validation
log-loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from thoraclip.data.splits import independent_groups
from thoraclip.dtypes import Floats, Ints, Singles
from thoraclip.errors import ConfigError
from thoraclip.labels import LabelSet, load_prompts
from thoraclip.methods.adapters import follow_adapter, with_adapter
from thoraclip.methods.encoders import EncoderConfig, finished_embeddings, load_encoder, load_text_encoder
from thoraclip.methods.parts import Part, parts_of
from thoraclip.methods.running import MethodOutput, RunContext, pooled_predictions, require_classes
from thoraclip.methods.sources import sources_of
from thoraclip.methods.zeroshot import class_vectors, prompt_vectors, prompts_digest
from thoraclip.models.erasure import fit_eraser
from thoraclip.models.heads import (
    LinearHead,
    fit_adamw,
    fit_lbfgs,
    fit_text_informed,
    log_loss,
    read_head,
    text_multipliers,
    write_head,
)
from thoraclip.posthoc.ood import MIN_ROWS, fit_ood, write_ood
from thoraclip.ranges import BatchSize, Fraction, OneOf, Range, Seed, Shots, Weighting
from thoraclip.runs import fold_file, remove_file
from thoraclip.tables.embeddings import Embeddings
from thoraclip.threads import cores, in_order

if TYPE_CHECKING:
    from thoraclip.models.classifiers import EncoderClassifier

__all__ = ["SOLVERS", "Config", "Solver", "Texts", "fit_fold", "fold_inputs", "run"]

_HEAD = "head.safetensors"


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """What one probe needs."""

    features: Annotated[str, OneOf(("pooled", "projected"))] = "pooled"
    """pooled (the vision tower's output before projection) or projected (the space shared with text)."""
    solver: Annotated[str, OneOf(SOLVERS)] = "lbfgs"
    """lbfgs (penalised logistic regression on standardised features), adamw (the reference study's softmax layer) or
    lp++ (text-informed: class prompts and features together; needs features = "projected")."""
    prompts: str = "chest-xray-ensemble"
    """lp++: a shipped prompt set, or a TOML file of your own."""
    l2_min: Annotated[float, Range(0, 1_000_000, above=True)] = 1e-4
    """lbfgs, lp++: weakest penalty of the log grid, on the mean log-loss."""
    l2_max: Annotated[float, Range(0, 1_000_000, above=True)] = 10.0
    """lbfgs, lp++: strongest penalty of the log grid."""
    l2_steps: Annotated[int, Range(1, 1_000)] = 11
    """lbfgs, lp++: number of penalties in the grid."""
    refit: bool = True
    """Fit again on training plus validation images once the penalty (or epoch) is chosen."""
    class_weight: Weighting = "none"
    """none, balanced (rare classes weigh more in the loss) or source (so do rare sources of a class, too)."""
    erase: Annotated[str, OneOf(("none", "source"))] = "none"
    """lbfgs, adamw: none, or source: what tells the sources of one class apart is taken out of the features (LEACE)."""
    val_fraction: Fraction = 0.2
    """Share of the training images held out by patient where the manifest names no validation split."""
    epochs: Annotated[int, Range(1, 1_000_000)] = 30
    """adamw: passes over the training features."""
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 1e-3
    """adamw: step size."""
    train_batch_size: BatchSize = 80
    """adamw: images per step."""
    shots: Shots = "all"
    """Labelled patients of each class that are drawn from the training images, validation included; all for all."""
    seed: Seed = 0
    """Decides the shots, the held-out part, and adamw's initial weights and batches."""

    # the name is not; what the prompts say is, where they are used: see `inputs`
    NOT_IN_THE_RESULT: ClassVar[tuple[str, ...]] = ("prompts",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l2_min > self.l2_max:
            raise ConfigError(f"l2_min = {self.l2_min}: exceeds l2_max = {self.l2_max}; lower it, or raise l2_max")
        if self.reads_prompts and self.features != "projected":
            raise ConfigError(
                f"solver = '{self.solver}' weighs features against texts, and features = '{self.features}' are not in "
                "the space shared with text; set features = 'projected'"
            )

        if self.reads_prompts and self.erase != "none":
            raise ConfigError(
                f"erase = '{self.erase}' moves features out of the space shared with text, and solver = "
                f"'{self.solver}' weighs them against texts; set erase = 'none', or solver = 'lbfgs'"
            )

    @property
    def reads_texts(self) -> bool:
        """True for features in the space shared with text."""
        return self.features == "projected"

    @property
    def reads_prompts(self) -> bool:
        """True where the solver needs the class prompts."""
        return SOLVERS[self.solver].needs_texts

    def inputs(self) -> dict[str, str]:
        """The encoder's artefacts, and the prompts as they read where the solver needs texts."""
        return super().inputs() | ({"prompts": prompts_digest(self.prompts)} if self.reads_prompts else {})


@dataclass(frozen=True)
class Texts:
    """The class prompts: unit vectors f64[C, P], and the encoder's logit scale."""

    vectors: Floats
    logit_scale: float


_Inputs = tuple[Part, Singles, Texts | None]
"""Of one fit; the features f32[N, D] are those of the whole manifest."""
Heads = Callable[[Config, Singles, Ints, LabelSet, Sequence[float], Texts | None, Ints | None], list[LinearHead]]


@dataclass(frozen=True)
class Solver:
    """One entry of `SOLVERS`."""

    # (settings, features f32[N, D], targets i64[N], classes, penalties, texts, sources i64[N] where they count) -> a
    # head for each penalty; of a solver by epochs a head after each of `settings.epochs`
    fit: Heads
    by_epoch: bool = False  # the epoch is chosen by validation; else the penalty
    needs_texts: bool = False  # the class prompts are read, in the space shared with text


def _text_informed(
    config: Config,
    x: Singles,
    y: Ints,
    labels: LabelSet,
    l2: Sequence[float],
    texts: Texts | None,
    sources: Ints | None,
) -> list[LinearHead]:
    assert texts is not None, "read where a solver needs them"
    given: dict[str, Any] = {"l2": l2, "weighting": config.class_weight, "sources": sources}
    return fit_text_informed(x, y, labels, texts=texts.vectors, logit_scale=texts.logit_scale, **given)


SOLVERS: Mapping[str, Solver] = {
    "lbfgs": Solver(
        lambda c, x, y, labels, l2, _, s: fit_lbfgs(x, y, labels, l2=l2, weighting=c.class_weight, sources=s)
    ),
    "adamw": Solver(
        lambda c, x, y, labels, _, __, sources: fit_adamw(
            x,
            y,
            labels,
            epochs=c.epochs,
            batch_size=c.train_batch_size,
            learning_rate=c.learning_rate,
            weighting=c.class_weight,
            seed=c.seed,
            sources=sources,
        ),
        by_epoch=True,
    ),
    "lp++": Solver(_text_informed, needs_texts=True),
}
"""Name -> solver; the setting `solver` takes these names."""


def run(config: Config, context: RunContext) -> MethodOutput:
    """Fit one head per fold (or one for the split), predict the test images, pool.

    The validation scores that are kept are those of the head that was fitted on the training images alone.
    """
    from threadpoolctl import threadpool_limits

    manifest = context.manifest
    labels = manifest.label_set(config.classes)
    targets, sources = manifest.targets(labels), sources_of(config, manifest)
    rows, scores, metrics, ood = [], [], [], []

    def work(fold: _Inputs) -> tuple[_Inputs, LinearHead, Floats, dict[str, object], dict[str, Any]]:
        return fold, *fit_fold(config, fold, targets, labels, sources), _keep_ood(context, fold, targets)

    with threadpool_limits(1):  # the folds are fitted side by side, each by one thread
        inputs = fold_inputs(config, context, labels)
        for fold, head, validation, chosen, flagged in in_order(work, inputs, ahead=cores()):
            part, features, texts = fold
            context.keep_validation(part, labels, validation)
            write_head(context.folder.file(fold_file(_HEAD, part.fold)), head)
            metrics.append({"fold": part.fold, **chosen})
            ood.append({"fold": part.fold, **flagged})
            rows.append(part.test)
            scores.append(head.predict(features[part.test]))
    dimension = int(features.shape[1])
    details = {"chosen": metrics, "features": config.features, "dimension": dimension, "out_of_distribution": ood}
    if texts:
        details |= {"prompt_set": load_prompts(config.prompts).name, "logit_scale": texts.logit_scale}
    return MethodOutput(pooled_predictions(manifest, labels, rows, scores), details, metrics)


def fold_inputs(config: Config, context: RunContext, labels: LabelSet) -> Iterator[_Inputs]:
    """What each fold's fit needs; where the folds have one encoder, they share the features."""
    manifest = context.manifest
    shared: tuple[Config, Singles, Texts | None] | None = None
    for part in parts_of(config, manifest, labels):
        chosen = with_adapter(config, part.fold)
        part = follow_adapter(chosen, manifest, part)
        if shared is None or shared[0] != chosen:
            embedded, texts = _inputs(chosen, context, labels)
            features = np.asarray(getattr(embedded, config.features)[embedded.rows_for(manifest)])
            shared = chosen, features, texts
        yield part, shared[1], shared[2]


def _inputs(config: Config, context: RunContext, labels: LabelSet) -> tuple[Embeddings, Texts | None]:
    """The features of all images, and the classes' texts where the solver needs them."""
    if not config.reads_prompts:
        return finished_embeddings(config) or context.embeddings(config, load_encoder(config)), None
    encoder = load_text_encoder(config, "probe")
    embedded = context.embeddings(config, encoder)
    vectors = class_vectors(prompt_vectors(encoder, load_prompts(config.prompts), labels))
    return embedded, Texts(vectors, encoder.logit_scale)


def _keep_ood(context: RunContext, fold: _Inputs, targets: Ints) -> dict[str, Any]:
    """Fit the out-of-distribution score on the training images, its threshold on the validation images, and write it.

    Returns:
        The share of the test images that it flags, or why there is none.
    """
    part, features, _ = fold
    file = context.folder.file(fold_file("novelty.safetensors", part.fold))
    if min(len(part.train), len(part.val)) < MIN_ROWS:
        remove_file(file)
        return {"reason": f"fewer than {MIN_ROWS} training or validation images"}
    patients = independent_groups(context.manifest)[part.val]
    fitted = fit_ood(features[part.train], targets=targets[part.train], held_out=features[part.val], patients=patients)
    write_ood(file, fitted)
    flagged = fitted.is_flagged(fitted.score(features[part.test]))
    counts = {"flagged": int(flagged.sum()), "test": len(part.test), "share": float(flagged.mean())}
    return {"promised": fitted.guaranteed_rate, **counts}


def fit_fold(
    config: Config, fold: _Inputs, targets: Ints, labels: LabelSet, sources: Ints | None = None
) -> tuple[LinearHead, Floats, dict[str, object]]:
    """Choose by validation log-loss, then fit again on training plus validation if asked.

    Returns:
        The head, scores f64[V, C] of the validation images by the one that was chosen, and facts.
    """
    part, features, texts = fold
    grid, solver = np.geomspace(config.l2_max, config.l2_min, config.l2_steps).tolist(), SOLVERS[config.solver]

    def heads(rows: Ints, upto: int | None = None) -> list[LinearHead]:
        """One head per candidate; with `upto`, the last one is that candidate."""
        asked, penalties = config, grid if upto is None else [grid[0] if solver.by_epoch else grid[upto]]
        if solver.by_epoch and upto is not None:
            asked = replace(config, epochs=upto + 1)
        own, x = None if sources is None else sources[rows], features[rows]
        if config.erase == "none":
            return solver.fit(asked, x, targets[rows], labels, penalties, texts, own)
        eraser = fit_eraser(x, targets[rows], np.unique(np.asarray(own), return_inverse=True)[1])
        found = solver.fit(asked, eraser.apply(x), targets[rows], labels, penalties, texts, own)
        return [eraser.folded(head) for head in found]

    candidates = heads(part.train)
    validation = [head.predict(features[part.val]) for head in candidates]
    losses = [log_loss(scores, targets[part.val]) for scores in validation]
    best = int(np.argmin(losses))
    head = heads(np.union1d(part.train, part.val), best)[-1] if config.refit else candidates[best]
    chosen: dict[str, object] = {"epoch": best + 1} if solver.by_epoch else {"l2": grid[best]}
    if texts:
        alpha = text_multipliers(head, texts.vectors, texts.logit_scale)
        chosen["alpha"] = dict(zip(labels.names, alpha.tolist(), strict=True))
    edge = best in {0, len(candidates) - 1} and len(candidates) > 1
    sizes = {"train": len(part.train), "val": len(part.val), "test": len(part.test)}
    return head, validation[best], chosen | sizes | {"val_log_loss": losses[best], "at_edge_of_grid": edge}


def load_classifier(config: Config, folder: Path, fold: int | None, labels: LabelSet) -> EncoderClassifier:
    """The encoder with the head that was fitted for the fold."""
    from thoraclip.models.classifiers import EncoderClassifier  # with torch

    head = read_head(folder / fold_file(_HEAD, fold))
    require_classes(folder, head.labels, labels)
    return EncoderClassifier(load_encoder(with_adapter(config, fold)), head, config.features)
