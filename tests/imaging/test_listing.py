"""Every file of a random tree is an image or listed with its count, for every command alike, and links make no loop."""

from __future__ import annotations

import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tests.conftest import examples
from tests.imaging.test_names import DICOM, FOREIGN, LITTER, READ

from thoraclip.bundle.images import ImagePaths, find_images
from thoraclip.data.layouts import Listing, find_layout
from thoraclip.errors import InputError, ManifestError
from thoraclip.imaging import decode
from thoraclip.imaging.listing import CLOSED, LINKS, walk
from thoraclip.imaging.names import IMAGES, MASKS, SYSTEM, is_mask_name, is_system_name

MASKED = ["masks", "lung masks", "Infection Masks", "my_mask_png", "a_mask.png", "b-masks 2.jpg"]
STEMS = st.text(alphabet="aB1 é-_.\n\x1b\u202e", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
ENDINGS = ["", ".png", ".PNG", ".jfif", ".jpe", ".dcm", ".dic", ".IMA", ".1", ".bin", ".tif", ".nii.gz", ".txt", ".csv"]
NAMES = (
    st.builds(str.__add__, STEMS, st.sampled_from(ENDINGS))
    | st.sampled_from([*LITTER, *MASKED, "train", "test", "images", "1.2.840.113619", "IM000001", "x" * 251 + ".png"])
    | st.binary(min_size=1, max_size=3).map(
        lambda name: os.fsdecode(name.replace(b"/", b"_").replace(b"\0", b"_")) + "\udcff.png"
    )
)
CONTENTS = st.sampled_from([b"", b"text", *READ.values(), *FOREIGN.values()])
LINKED = st.sampled_from(
    ["link:" + to for to in (".", "..", "../..", "self", "nowhere", "/out", "/out/deep", "/out/2.png", "A", "/")]
)
SPECIAL = st.sampled_from(["pipe", "socket"])
TREES = st.dictionaries(
    NAMES, st.recursive(CONTENTS | LINKED | SPECIAL, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=8),
    max_size=5,
)  # fmt: skip


def grow(folder: Path, tree: dict[str, Any], outside: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, branch in tree.items():
        path = folder / name
        if os.path.lexists(path):
            continue
        if isinstance(branch, dict):
            grow(path, branch, outside)
        elif isinstance(branch, bytes):
            path.write_bytes(branch)
        elif branch == "pipe":
            os.mkfifo(path)
        elif branch == "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        else:
            to = branch.removeprefix("link:")
            path.symlink_to(name if to == "self" else to.replace("/out", outside) if to.startswith("/out") else to)


@contextmanager
def grown(tree: dict[str, Any]) -> Iterator[Path]:
    """The tree as a folder, beside one that is linked to and links back."""
    with tempfile.TemporaryDirectory() as work:
        outside = Path(work).resolve() / "out"
        grow(
            outside,
            {"2.png": READ["png"], "deep": {"3": DICOM, "up": "link:..", "notes": b"text"}, "root": "link:../r"},
            "",
        )
        grow(Path(work) / "r", tree, str(outside))
        yield Path(work).resolve() / "r"


def is_closed(root: Path, path: str | Path, test: Callable[[str], bool]) -> bool:
    """Whether a folder on the way to a path, below the root, bears such a name."""
    return any(test(part) for part in Path(path).relative_to(root).parts)


def on_disk(root: Path, refused: set[str]) -> list[str]:
    """Every file, and every link to a folder that is not followed, by a walk of its own."""
    entries, todo = list[str](), [(root, True)]
    while todo:
        top, may_follow = todo.pop()
        for folder, folders, files in os.walk(top):
            entries += [f"{folder}/{name}" for name in files]
            for path in (Path(folder, name) for name in folders):
                if not path.is_symlink():
                    continue
                inside = is_closed(root, path, is_system_name) or is_closed(root, path.parent, is_mask_name)
                if inside or not may_follow or str(path) in refused:
                    entries.append(str(path))
                else:
                    todo.append((path, not is_mask_name(path.name)))
    return entries


def is_file(path: str) -> bool:
    """Also of a name that is too long, or a link to itself."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except OSError:
        return False


def check_links(root: Path, refused: set[str]) -> None:
    """A link that is not followed leads to what is listed, or above it; `/` and the root's own parents never are."""
    targets = {os.path.realpath(path) for path in refused}
    outside = str(root.parent / "out")
    for target in targets:
        assert str(root).startswith(target.rstrip("/")) or target.startswith((str(root), outside))


@examples(80)
@given(tree=TREES)
@example(
    tree={
        "a": {"link": "link:/out", "again": "link:/out"},
        "b": "link:/out/deep",
        "c": "link:.",
        "d": "link:..",
        "e": "link:self",
    }
)
@example(tree={"masks": {"l": "link:/out", "a.png": b""}, "z": "link:/out", ".x": "link:/out"})
def test_every_file_is_found_once_and_counted(tree: dict[str, Any]) -> None:
    with grown(tree) as root:
        found = [one for one in walk(root) if one.files]
        refused = {one.path for one in found if one.kind == LINKS}
        check_links(root, refused)
        entries = Counter(on_disk(root, refused))
        for one in found:
            if Path(one.path).is_dir() and one.kind in (SYSTEM, MASKS):
                below = [path for path in entries if path == one.path or path.startswith(one.path + "/")]
                assert one.files == len(below)
                for path in below:
                    del entries[path]
            else:
                assert one.files == 1
                entries.subtract([one.path])
        assert {path: n for path, n in entries.items() if n} == {}
        assert [one.path.split("/") for one in found] == sorted(one.path.split("/") for one in found)
        for one in found:
            name = Path(one.path).name
            is_system = is_closed(root, one.path, is_system_name)
            assert (one.kind == SYSTEM) is is_system
            if one.kind == IMAGES and not name.lower().endswith((".png", ".jfif", ".jpe", ".dcm")):
                decode(Path(one.path))  # what the first bytes tell is no guess


@examples(80)
@given(tree=TREES)
def test_predict_and_walk_agree_and_nothing_is_lost(tree: dict[str, Any]) -> None:
    with grown(tree) as root:
        found = [one for one in walk(root) if one.files]
        images = [one.path for one in found if one.kind == IMAGES]
        if not images:
            with pytest.raises(InputError, match="no PNG, JPEG or DICOM picture in this folder; it holds"):
                find_images([root])
            return
        pictures: ImagePaths = find_images([root])
        assert list(pictures) == images
        assert pictures.left_out.counts.total() + len(images) == sum(one.files for one in found)
        assert pictures.count() == pictures.looked_at


def counts(listing: Listing) -> int:
    masks = sum(bool(row.get(column)) for row in listing.rows for column in ("lung_mask", "infection_mask"))
    lists = (listing.rows, listing.set_aside, listing.other_files, listing.repeated_files)
    folders = listing.unknown_folders + listing.system_files + listing.not_in_table
    return sum(map(len, lists)) + sum(files for _, files in folders) + masks


def classes_filled(root: Path) -> None:
    """An image in every folder that may be a class."""
    for folder in [root, *root.iterdir()]:
        for place in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
            if place.is_dir() and not place.is_symlink():
                (place / "zz.png").write_bytes(READ["png"])


@given(
    tree=TREES,
    classes=st.sampled_from([("A", "B"), ("train/A", "test/A"), ("w/A", "w/B"), ("w/v/train/A", "w/v/test/B")]),
)
def test_class_folders_list_every_file_and_agree_with_predict(tree: dict[str, Any], classes: tuple[str, ...]) -> None:
    assume(all(isinstance(tree.get(folder.split("/")[0], {}), dict) for folder in classes))
    with grown(tree) as root:
        for folder in classes:
            (root / folder).mkdir(parents=True, exist_ok=True)
            grow(root / folder, tree, str(root.parent / "out"))
        classes_filled(root)
        found = [one for one in walk(root) if one.files]
        try:
            listing = find_layout("folders")(root)
        except ManifestError as error:
            assert "holds no PNG, JPEG or DICOM picture; add some or remove it (mv " in str(error)
            return
        assert counts(listing) == sum(one.files for one in found)
        images = {os.path.relpath(one.path, root) for one in found if one.kind == IMAGES}
        rows = {row["path"] for row in listing.rows}
        assert rows <= images
        aside, unknown = dict(listing.set_aside), [folder for folder, _ in listing.unknown_folders]
        for path in images - rows:
            written = path.encode("utf-8", "backslashreplace").decode()
            assert written in aside or any(written.startswith(folder + "/") for folder in unknown)
        for row in listing.rows:
            row["path"].encode()
            assert not any(is_system_name(part) or is_mask_name(part) for part in row["path"].split("/")[:-1])


@examples(24)
@given(tree=TREES, seed=st.integers(0, 3))
def test_covid_qu_ex_lists_every_file(tree: dict[str, Any], seed: int) -> None:
    """In the folder itself or in a wrapper, with masks that lack their image and images that lack their mask."""
    with grown(tree if seed % 2 else {}) as root:
        top = root / "archive" / "Lung Segmentation Data" if seed > 1 else root
        for label in ("COVID-19", "Normal"):
            for part in ("images", "lung masks", "infection masks"):
                (top / "Train" / label / part).mkdir(parents=True)
                more = {"zz.png": READ["png"], f"{part}.png": READ["png"]}
                grow(top / "Train" / label / part, tree | more, str(root.parent / "out"))
        listing = find_layout("covid-qu-ex")(root)
        assert {row["label"] for row in listing.rows} == {"COVID-19", "Normal"}
        assert all(row["lung_mask"] for row in listing.rows if row["path"].endswith("/zz.png"))
        if not any(isinstance(branch, str) for branch in _leaves(tree)):  # how links count is tested above
            assert counts(listing) == len(on_disk(root, set()))


def _leaves(tree: dict[str, Any]) -> Iterator[Any]:
    for branch in tree.values():
        if isinstance(branch, dict):
            yield from _leaves(branch)
        else:
            yield branch


def test_a_path_longer_than_the_system_takes_is_listed(tmp_path: Path) -> None:
    here, name = Path.cwd(), "d" * 255
    try:
        os.chdir(tmp_path)
        for _ in range(18):
            os.mkdir(name)  # noqa: PTH102
            os.chdir(name)
            Path("x.png").write_bytes(b"")
    finally:
        os.chdir(here)
    last, *rest = [one for one in walk(tmp_path) if one.files]  # the deepest comes first
    assert {one.kind for one in rest} == {IMAGES} and len(rest) >= 14
    assert (last.kind, last.reason) == (CLOSED, "the folder cannot be read (File name too long)")
    assert len(list(find_images([tmp_path]))) == len(rest)
