"""The JSON answers of the API: their schemas, and how they are filled. Numbers have the 6 decimals of `predict`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Annotated, Any

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from thoraclip.bundle.runtime import Prediction
from thoraclip.errors import ImageError
from thoraclip.heatmaps.overlay import heat_layer, outline_layer
from thoraclip.heatmaps.picture import Explanation
from thoraclip.server.batch_queue import METHODS, BatchQueue
from thoraclip.server.limits import MEGA, reason_of

__all__ = [
    "NOTE",
    "BundleFacts",
    "Explained",
    "Predicted",
    "Problem",
    "State",
    "bundle_facts",
    "explained",
    "predicted",
]

NOTE = "Research use only, not for diagnosis."
Rounded = Annotated[float, AfterValidator(lambda value: round(value, 6))]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class About(_Answer):
    """Which bundle has answered."""

    name: str = Field(description="As the server calls it; the value of the parameter `bundle`.")
    title: str = Field(description="Method, base model and precision.")
    labels: list[str] = Field(description="The classes.")
    fingerprint: str = Field(description="SHA-256 over the checksums of all its files.", min_length=64, max_length=64)


class BundleFacts(About):
    """A bundle in the answer of `/v1/bundles`, and what the server takes."""

    calibrated: bool = Field(description="Whether scores are calibrated; else they are as the model gives them.")
    set_coverage: Rounded | None = Field(
        description="Share of images, like those of the validation, whose `set` is to hold the true class; null where "
        "the bundle has no sets."
    )
    detects_ood: bool = Field(description="Whether `ood` says if an image is unlike the training images.")
    thumbnails: int = Field(description="Training images that the bundle carries, for `neighbours`.", ge=0)
    methods: list[str] = Field(description="Heat maps of `/v1/explain`; the first is the default.")
    most_bytes: int = Field(description="Size of the largest request that the server takes.", gt=0)
    phantoms: int = Field(
        description="Synthetic radiographs of the page: `/page/phantom-0.png` and on; 0 without the page or SciPy.",
        ge=0,
    )


class Neighbour(_Answer):
    """A training picture that the bundle carries."""

    label: str = Field(description="Its class in the training data.")
    similarity: Rounded = Field(description="Cosine of the features.", ge=-1.000001, le=1.000001)
    picture: str = Field(description="Thumbnail: a data URI of a PNG.")


class OnePicture(_Answer):
    """What a bundle says of a picture, or why the picture cannot be read."""

    index: int = Field(description="Place in the request, from 0.", ge=0)
    label: str | None = Field(description="The class of the highest score.")
    scores: dict[str, Rounded] | None = Field(description="Calibrated probability of each class; they sum to 1.")
    set: list[str] | None = Field(
        description="Classes that cannot be ruled out: more than one is an abstention between them, none fits no "
        "class. Null where the bundle has no such sets."
    )
    ood: bool | None = Field(
        description="Whether the picture is unlike the training images, so that its scores mean nothing; null where "
        "the bundle cannot tell."
    )
    ood_score: Rounded | None = Field(description="How unlike; flagged above the bundle's threshold.")
    neighbours: list[Neighbour] | None = Field(
        description="The most similar training pictures that the bundle carries; null unless asked for."
    )
    remarks: list[str] | None = Field(
        description="Where the file contradicts itself, or its values do not fit their depth; mostly empty."
    )
    error: str | None = Field(description="Why the picture cannot be read; all else is null then.")


class Predicted(_Answer):
    """Answer of `/v1/predict`."""

    bundle: About
    pictures: list[OnePicture] = Field(description="In the order of the request.")
    note: str = NOTE


class Explained(_Answer):
    """Answer of `/v1/explain`."""

    bundle: About
    prediction: OnePicture
    explained: str = Field(description="The class whose evidence is shown.")
    method: str = Field(description="How the map was made: occlusion.")
    evidence_in_lungs: Rounded | None = Field(
        description="Share of the evidence inside the lungs; null without an outline."
    )
    lung_area: Rounded | None = Field(description="Share of the picture that the lungs cover; null without an outline.")
    lungs_from: str = Field(description="Where the outline is from, or why there is none.")
    picture: str = Field(description="The radiograph: a data URI of a grey PNG.")
    heat: str = Field(description="The evidence, to be laid over it: a data URI of a PNG with alpha, of the same size.")
    outline: str | None = Field(description="The lungs' outline: a data URI of a PNG with alpha, of the same size.")
    note: str = NOTE


class State(_Answer):
    """Answer of `/health` and `/ready`."""

    status: str


class BadPicture(_Answer):
    """A picture that cannot be read."""

    index: int
    error: str


class Problem(_Answer):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="The reason and the remedy.")
    pictures: list[BadPicture] | None = Field(default=None, description="The reason for each picture.")


def _about(queue: BatchQueue) -> About:
    """The bundle of a queue."""
    bundle = queue.classifier.bundle
    title, labels = bundle.title.removeprefix("bundle: "), list(bundle.labels.names)
    return About(name=queue.name, title=title, labels=labels, fingerprint=bundle.fingerprint)


def bundle_facts(queue: BatchQueue, *, phantoms: int) -> BundleFacts:
    """What the bundle of a queue can do; `phantoms`: synthetic radiographs that the server draws."""
    bundle = queue.classifier.bundle
    return BundleFacts(
        **_about(queue).model_dump(),
        calibrated=bundle.scaling is not None,
        set_coverage=None if bundle.sets is None else 1 - bundle.sets.alpha,
        detects_ood=bundle.facts["novelty"] is not None,
        thumbnails=(bundle.facts.get("thumbnails") or {"images": 0})["images"],
        methods=list(METHODS),
        most_bytes=queue.limits.megabytes * MEGA,
        phantoms=phantoms,
    )


def predicted(queue: BatchQueue, results: Sequence[Prediction | ImageError], *, neighbours: int = 0) -> Predicted:
    """The answer to some images."""
    pictures = [_one_picture(queue, index, result, neighbours=neighbours) for index, result in enumerate(results)]
    return Predicted(bundle=_about(queue), pictures=pictures)


def _one_picture(queue: BatchQueue, index: int, result: Prediction | ImageError, *, neighbours: int = 0) -> OnePicture:
    """The answer to an image."""
    if isinstance(result, ImageError):
        empty: dict[str, Any] = dict.fromkeys(OnePicture.model_fields)
        return OnePicture(**empty | {"index": index, "error": reason_of(result)})
    near = None
    if neighbours and (thumbnails := queue.classifier.bundle.thumbnails) is not None:
        near = [
            Neighbour(label=one.label, similarity=one.similarity, picture=_data_uri(Image.fromarray(one.grey)))
            for one in thumbnails.nearest(result.features, count=neighbours)
        ]
    said: dict[str, Any] = {name: getattr(result, name) for name in ("label", "scores", "set", "ood", "ood_score")}
    return OnePicture(index=index, neighbours=near, remarks=list(result.remarks), error=None, **said)


def explained(queue: BatchQueue, prediction: Prediction, shown: Explanation, *, neighbours: int = 0) -> Explained:
    """The answer to an image whose evidence was asked for."""
    names = ("method", "evidence_in_lungs", "lung_area", "lungs_from")
    said: dict[str, Any] = {name: getattr(shown, name) for name in names}
    return Explained(
        **said,
        bundle=_about(queue),
        prediction=_one_picture(queue, 0, prediction, neighbours=neighbours),
        explained=shown.label,
        picture=_data_uri(Image.fromarray(shown.grey)),
        heat=_data_uri(heat_layer(shown.heat, shown.seen)),
        outline=_data_uri(outline_layer(shown.lungs)) if shown.lungs.any() else None,
    )


def _data_uri(image: Image.Image) -> str:
    """An image as a PNG that stands in a page or in JSON itself."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
