"""What the page says: answers and cards as HTML, all that is foreign escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from thoraclip.deploy.bundle import CARD
from thoraclip.deploy.server.answers import Explained, OnePicture, about
from thoraclip.deploy.server.desk import Desk
from thoraclip.pages import environment

__all__ = ["STRANGE", "answer_html", "card_html", "chance", "map_words", "near_html", "page_html", "verdict"]

STRANGE = "This does not look like the images that the classifier was trained on; the numbers below mean nothing."
_SPACE = "\u00a0"
"""That no line breaks at."""
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """What a prediction set comes to.

    Args:
        kind: `one`, `several`, `none`, or `absent` for a bundle without sets.
        headline, detail: a sentence each.
    """

    kind: str
    headline: str
    detail: str


def verdict(one: OnePicture) -> Verdict:
    """In plain words."""
    label, kept = str(one.label), one.set
    if kept is None:
        return Verdict(
            "absent", f"Most likely {label}",
            "The bundle has no prediction sets: it does not say which classes can be ruled out.",
        )  # fmt: skip
    if not kept:
        return Verdict(
            "none",
            "Looks like no class",
            "The bundle rules out every class that it knows. The bars only say which is nearest.",
        )
    if len(kept) == 1:
        return Verdict("one", kept[0], f"{kept[0]} is the only class that the bundle cannot rule out.")
    neither = "neither" if len(kept) == 2 else "none of them"
    return Verdict("several", f"The bundle abstains between {_and(kept)}", f"{neither} can be ruled out.".capitalize())


def chance(score: float) -> str:
    """A probability for the eye: `62.3 %`; never 0 or 100, which no classifier knows."""
    if score < 0.001:
        return f"< 0.1{_SPACE}%"
    return f"> 99.9{_SPACE}%" if score > 0.999 else f"{100 * score:.1f}{_SPACE}%"


def map_words(told: Explained) -> list[str]:
    """What must be known beside a heat map."""
    words = []
    if told.evidence_in_lungs is not None and told.lung_area is not None:
        words.append(
            f"{100 * told.evidence_in_lungs:.0f}{_SPACE}% of the evidence lies in the lungs, which cover {100 * told.lung_area:.0f}{_SPACE}% of the "
            "picture."
        )
    words.append(f"Lung outline: {told.lungs_from}.")
    if told.evidence_in_lungs is None and told.outline is not None:
        words.append("The map is empty: this method sees no evidence for the class.")
    words.append("The colour is scaled to this picture's hottest place. A map is no proof.")
    return words


def answer_html(desk: Desk, one: OnePicture) -> str:
    """What a bundle says of a picture that could be read."""
    assert one.scores is not None
    rows = sorted(one.scores.items(), key=lambda item: -item[1])
    return _render(
        "answer.html.j2", one=one, rows=rows, said=verdict(one), promise=_promise(desk), strange=STRANGE,
        is_calibrated=desk.classifier.bundle.scaling is not None,
    )  # fmt: skip


def near_html(one: OnePicture) -> str:
    """The most similar training pictures; empty where the bundle carries none."""
    return _render("near.html.j2", one=one)


def page_html(desks: Sequence[Desk], *, most_bytes: int, methods: Sequence[str], phantoms: int) -> str:
    """The page before any picture has come.

    Args:
        desks: one for each bundle.
        most_bytes: of a file.
        methods: names of heat maps, the first is the default.
        phantoms: how many synthetic radiographs can be had.
    """
    bundles = [
        {"about": about(desk), "promise": _promise(desk), "card": card_html(_card(desk)), "facts": _facts(desk)}
        for desk in desks
    ]
    return _render("page.html.j2", bundles=bundles, most_bytes=most_bytes, methods=methods, phantoms=phantoms)


def card_html(text: str) -> str:
    """Markdown -> HTML: raw HTML is shown, not obeyed; pictures, which may lie on other hosts, are left out."""
    return str(_markdown().render(_FRONT_MATTER.sub("", text)))


@cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

    def link(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        tokens[index].attrSet("rel", "noopener noreferrer nofollow")
        tokens[index].attrSet("target", "_blank")
        return str(self.renderToken(tokens, index, options, env))

    def lower(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        tokens[index].tag = f"h{min(6, int(tokens[index].tag[1]) + 2)}"  # the page has headings above
        return str(self.renderToken(tokens, index, options, env))

    reader.add_render_rule("link_open", link)
    for kind in ("heading_open", "heading_close"):
        reader.add_render_rule(kind, lower)
    return reader


def _card(desk: Desk) -> str:
    return (desk.classifier.bundle.folder / CARD).read_text(encoding="utf-8", errors="replace")


def _promise(desk: Desk) -> str | None:
    """What the prediction sets keep to."""
    sets = desk.classifier.bundle.sets
    if sets is None:
        return None
    return f"On images like those it was calibrated on, the true class is not ruled out in {100 * (1 - sets.alpha):.0f}{_SPACE}% of cases."


def _facts(desk: Desk) -> list[str]:
    """What a bundle can tell, one line each."""
    bundle = desk.classifier.bundle
    return [
        "Calibrated probabilities"
        if bundle.scaling is not None
        else "Probabilities, as the model gives them: not calibrated",
        "Which classes cannot be ruled out, and so when it abstains"
        if bundle.sets is not None
        else "It does not abstain: no prediction sets",
        "A warning when a picture is unlike the training images"
        if bundle.facts["novelty"] is not None
        else "No warning when a picture is unlike the training images",
        "Where in the picture the evidence lies",
        *(["The most similar training images"] if bundle.thumbnails is not None else []),
    ]


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _whole(text: str) -> Any:
    """Escaped, and no line is broken at the hyphen of a short name."""
    from markupsafe import Markup, escape

    span = r'<span class="tc-whole">\1</span>'
    return Markup(re.sub(r"(?<!\S)([^\s-]{1,12}-[^\s-]{1,12})(?!\S)", span, str(escape(text))))


def _render(name: str, **values: Any) -> str:
    found = environment("thoraclip.deploy.server", html=True, chance=chance, whole=_whole)
    return str(found.get_template(name).render(**values))
