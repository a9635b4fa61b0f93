"""What a study is: its settings and its methods; `reading` reads both from a file, a folder or a command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from thoraclip.data.lungs import require_mask_source
from thoraclip.errors import ConfigError
from thoraclip.evaluation.predictive import read_prevalence, require_classes
from thoraclip.evaluation.results import Published
from thoraclip.imaging.remedies import NONE
from thoraclip.imaging.remedies import REMEDIES as PIXEL_REMEDIES
from thoraclip.methods.caption import CAPTIONERS
from thoraclip.methods.tracking import require_trackers
from thoraclip.ranges import (
    AnyBatchSize,
    AuditImages,
    FoldCount,
    FoldNumber,
    Geometry,
    Joined,
    OneOf,
    Precision,
    Range,
    Resamples,
    RuntimeName,
    Seeds,
    Shots,
    Weighting,
    conform,
)
from thoraclip.runs import Progress
from thoraclip.study.images import External, ImageSource
from thoraclip.tables.manifest import Manifest

__all__ = ["CAPTIONS", "OWN_CAPTIONS", "MethodEntry", "Study", "StudyConfig", "study_notes"]

CAPTIONS = "captions.parquet"
"""File of the captions that the study makes, in its folder."""
OWN_CAPTIONS = "(written by the study)"
"""Stands for the caption file that the study makes in its folder."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig(ImageSource):
    """What one study needs; the list of methods stands beside it."""

    title: str = "Chest X-ray classification study"
    """Headline of the report."""
    model: str = "tiny-clip"
    """Dual encoder of every method that does not name its own; openai/clip-vit-base-patch32 for real work."""
    models: tuple[str, ...] = ()
    """Several encoders in place of `model`: every method that names no model of its own runs with each."""
    adapter: str = ""
    """PEFT adapter folder merged into the model; empty for none."""
    captions: str = ""
    """Caption file of the methods that train on captions."""
    remedy: Annotated[str, Joined(PIXEL_REMEDIES)] = NONE
    """What is done to every picture against shortcuts, in every method; see docs/remedies.md."""
    remedies: tuple[str, ...] = ()
    """Remedies against shortcuts: every method also runs with each, as in ["centre", "centre+equalise"]; the report
    compares them inside and on the external sets. See docs/remedies.md."""
    captioner: str = ""
    """Who writes the captions where no file is given: blip, template or column; empty: nobody, class prompts are
    trained on."""
    caption_model: str = "Salesforce/blip-image-captioning-base"
    """captioner blip: Hub id or local folder."""
    caption_column: str = ""
    """captioner column: the manifest's column of texts."""
    geometry: Geometry = "squash"
    """How pictures become square: squash, crop or pad."""
    precision: Precision = "auto"
    """fp32, bf16 or auto."""
    runtime: RuntimeName = "auto"
    """fp32 on a CPU: torch, onnxruntime, openvino, or auto: the fastest for long work, equal to 1e-5."""
    batch_size: AnyBatchSize = 0
    """Images per forward pass, 0 for what suits each network; where a method trains, its own batch_size and chunk_size
    count."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the scores; empty for the manifest's, sorted."""
    class_weight: Weighting = "none"
    """none, balanced or source, for methods that train."""
    only_folds: tuple[FoldNumber, ...] = ()
    """Folds that are held out and scored; empty for all of them."""
    folds: FoldCount = 5
    """Patient folds that are made when the images have neither split nor folds."""
    group_duplicates: bool = True
    """Whether folds that the study makes keep near duplicates together; every picture is looked at once for it."""
    seeds: Seeds = (0,)
    """Every method that depends on a seed runs once for each."""
    shots: tuple[Shots, ...] = ()
    """Learning curve: every method that trains also runs on so many labelled patients of each class, as in
    [1, 2, 4, 8, 16, 32, "all"]; all is the usual training, which the table shows whether it is named here or not."""
    draws: Annotated[int, Range(2, 1_000)] = 3
    """How often the patients of each number of shots are drawn, with the seeds from the first of seeds on."""
    pixel_cache: bool = True
    """Whether decoded pictures are kept in the study folder (a byte a pixel), so that all methods decode each one
    once."""
    resamples: Resamples = 2000
    """Bootstrap resamples behind every interval."""
    prevalence: tuple[str, ...] = ()
    """CLASS=SHARE, such as COVID-19=0.05: how common a class is elsewhere, for predictive values there."""
    thumbnails: bool = True
    """Whether report.html shows misclassified images."""
    audit: Annotated[str, OneOf(("best", "all", "none"))] = "best"
    """Which methods are asked whether they read lungs or shortcuts: best (by macro F1, of those that keep a
    classifier), all or none."""
    audit_images: AuditImages = "auto"
    """Images that each audit looks at: auto (of the fewest patients that can show an effect of 10 points beyond the
    margin), all that the classifier has not seen, or a number at most."""
    audit_masks: str = "auto"
    """Where an audit gets the lungs from, see thoraclip audit: auto, given, estimate, none, or a folder with your own
    model."""
    trackers: tuple[str, ...] = ()
    """Trackers that get the report, and what methods that train send: mlflow, tensorboard, trackio, wandb. Those that
    keep files get report.html with its thumbnails."""
    published: tuple[Published, ...] = ()
    """Values of others, one [[published]] table each, printed beside the measured ones; not for --set, see
    docs/report.md."""
    external: tuple[External, ...] = ()
    """Test sets from elsewhere, one [external.NAME] table each, scored by every method that keeps a model; not for
    --set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.models and self.adapter:
            raise ConfigError(
                f"adapter = '{self.adapter}' belongs to one encoder, and models = {list(self.models)}; name both "
                "the adapter and its model in a [[methods]] table"
            )
        if not self.seeds:
            raise ConfigError("seeds = []: one whole number or more is needed")
        if self.captioner:
            conform("captioner", self.captioner, Annotated[str, OneOf(CAPTIONERS)])
        if self.captioner and self.captions:
            raise ConfigError(
                f"captions = '{self.captions}' are there already, so captioner = '{self.captioner}' has nothing to "
                "write; leave one of them out"
            )
        require_mask_source(self.audit_masks, "audit_masks")
        read_prevalence(self.prevalence)
        require_trackers(self.trackers)

    def stated_prevalence(self, manifest: Manifest) -> dict[str, float]:
        """Class -> share; raises ConfigError where a class is none of the manifest's."""
        stated = read_prevalence(self.prevalence)
        if stated:
            require_classes(stated, manifest.label_set(self.classes).names)
        return stated


@dataclass(frozen=True)
class MethodEntry:
    """One `[[methods]]` of a study."""

    name: str  # in the table
    kind: str  # in `METHODS`
    config: Any  # for the first seed
    folder: str  # its name below `runs/`
    seeds: tuple[int, ...] = ()  # of its runs; `()` for a method without one
    after: MethodEntry | None = None  # the fine-tuning whose adapters it uses, those of the same seed
    head: str = ""  # of a method that a study runs with several encoders: its name without the encoder's
    plain: str = ""  # of a run with a remedy: the name of the same method without
    with_remedy: str = ""  # the remedy, as the study names it

    def runs(self, out: Path) -> list[tuple[int | None, Any, Path]]:
        """(seed, config, run folder) of every run of the study in `out`."""
        runs = list[tuple[int | None, Any, Path]]()
        for seed in self.seeds or [None]:
            given: dict[str, Any] = {"captions": str(out / CAPTIONS)} if self.has_own_captions else {}
            if self.after:
                given["adapter"] = str(self.after.run_folder(out, seed))
            if seed is not None and hasattr(self.config, "seed"):
                given["seed"] = seed
            runs.append((seed, dataclasses.replace(self.config, **given), self.run_folder(out, seed)))
        return runs

    @property
    def is_trained(self) -> bool:
        """True where it, or the adapter that it uses, is fitted to images: what is not has no seed."""
        return bool(self.seeds or self.after or getattr(self.config, "adapter", ""))

    @property
    def has_own_captions(self) -> bool:
        """True where it trains on the captions that the study writes."""
        return getattr(self.config, "captions", "") == OWN_CAPTIONS

    def run_folder(self, out: Path, seed: int | None) -> Path:
        """Of the run of one seed."""
        own = out / "runs" / self.folder
        return own / f"seed-{seed}" if len(self.seeds) > 1 else own


def study_notes(config: StudyConfig, methods: Sequence[MethodEntry], manifest: Manifest) -> list[str]:
    """Which encoders a method leaves out, and what a study that trains once cannot say."""
    notes = [
        f"{head}: compares images with texts, so it leaves out {', '.join(left_out)}, which have no text tower"
        for head in dict.fromkeys(method.head for method in methods if method.head)
        if (left_out := sorted(set(config.models) - {m.config.model for m in methods if m.head == head}))
    ]
    seeds = next((method.seeds for method in methods if method.seeds), ())  # of all that are trained
    if len(seeds) == 1 and set(manifest.column("fold")) <= {None}:
        notes.append(
            "one seed and no folds: differences will be between single trainings, not between methods; for these add "
            "--set 'seeds=[0, 1, 2]'"
        )
    return notes


@dataclass(frozen=True)
class Study:
    """A study at work: what its stages share."""

    config: StudyConfig
    methods: Sequence[MethodEntry]
    manifest: Manifest  # split
    out: Path  # the study folder
    log: Callable[[str], None]  # gets a line at every stage
    progress: Progress | None

    @property
    def pixels(self) -> Path | None:
        """Folder of the decoded images; `None` keeps none."""
        return self.out / "pixels" if self.config.pixel_cache else None
