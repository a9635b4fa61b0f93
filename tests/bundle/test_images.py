"""All images that were named are listed in order; what is left out is counted."""

from __future__ import annotations

import inspect
import io
import itertools
import os
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.conftest import examples, write_class_folder

from thoraclip.bundle import images
from thoraclip.bundle.images import ImagePaths, PathTable, find_images, listed_paths
from thoraclip.data.index import index
from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.imaging.listing import walk
from thoraclip.imaging.names import IMAGES
from thoraclip.tables.manifest import write_manifest

DICOM = b"\0" * 128 + b"DICM"


def put(root: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def below(root: Path, pictures: ImagePaths) -> list[str]:
    """Paths of a pass, as they are below a folder."""
    return [str(Path(path).relative_to(root)) for path in pictures]


NAMES = st.text(alphabet="aB1.-_ é", min_size=1, max_size=3).filter(lambda name: name not in {".", ".."})
ENDINGS = st.sampled_from(["", ".png", ".PNG", ".dcm", ".txt", ".1"])
TREES = st.recursive(
    st.binary(max_size=1),
    lambda inner: st.dictionaries(st.builds(str.__add__, NAMES, ENDINGS), inner, max_size=4),
    max_leaves=12,
)


def grow(folder: Path, tree: Any) -> None:
    folder.mkdir()
    for name, branch in tree.items():
        if isinstance(branch, dict):
            grow(folder / name, branch)
        else:
            (folder / name).write_bytes(DICOM if branch else b"")


@examples(60)
@given(tree=st.dictionaries(NAMES, TREES, max_size=4))
@example(tree={})
@example(tree={"b": {"c.txt": b"x", ".a.png": b"x"}, "a.txt": b"", ".c": {"d.png": b""}})
@example(
    tree={
        "a": {"2.JPG": b"", "10.jpeg": b""},
        "a.png": b"",
        "Z.dcm": b"",
        "b.txt": b"",
        "c": {"a.csv": b"", "README": b""},
    }
)
def test_the_walk_finds_what_a_plain_search_finds(tree: dict[str, Any]) -> None:
    """In sorted order, on every pass; without what is hidden, and with the rest counted."""
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "r"
        grow(root, tree)
        files = [file for file in root.rglob("*") if file.is_file()]
        hidden = [f for f in files if any(part.startswith(".") for part in f.relative_to(root).parts)]
        visible = [file for file in files if file not in hidden]
        expected = sorted((Path(one.path) for one in walk(root) if one.kind == IMAGES), key=lambda file: file.parts)
        others = [str(file) for file in visible if file not in expected]
        told = [f"files that are no pictures: {len(others)}, first {min(others)}"] if others else []
        if hidden:
            first = min(next(str(p) for p in reversed([f, *f.parents][:-1]) if p.name[0] == ".") for f in hidden)
            told.append(f"hidden files and files of the system: {len(hidden)}, first {first}")
        if not expected:
            holds = f"it holds {', '.join(told) or 'nothing'}; name another folder, or the files"
            with pytest.raises(InputError, match=re.escape(f"no PNG, JPEG or DICOM picture in this folder; {holds}")):
                find_images([root])
            return
        pictures = find_images([root])
        for _ in range(2):
            assert list(pictures) == [str(file) for file in expected]
            assert pictures.left_out.phrases() == told
            assert pictures.count() == pictures.looked_at


def test_what_nobody_may_open_is_taken_so_that_its_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting opens nothing."""
    put(tmp_path, "a.png", "IM0001", "README", "1.2.3", content=b"text")
    opened = list[Path]()

    def closed(self: Path, *_: object, **__: object) -> None:
        opened.append(self)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", closed)
    pictures = find_images([tmp_path, tmp_path / "README"])
    opened.clear()
    assert (pictures.count(), opened) == (5, [])
    assert below(tmp_path, pictures) == ["1.2.3", "IM0001", "README", "a.png", "README"]


def test_links_to_folders_are_followed_where_they_lead_to_files_that_are_not_listed(tmp_path: Path) -> None:
    put(tmp_path, "real/a.png", "real/sub/b.png", "elsewhere/c.png")
    links = {
        "sub/up": "real",
        "other": "elsewhere",
        "d.png": "elsewhere/c.png",
        "gone.png": "no",
        "self.png": "real/self.png",
    }
    for name, target in links.items():
        (tmp_path / "real" / name).symlink_to(tmp_path / target)
    for name in ("pipe.png", "pipe"):
        os.mkfifo(tmp_path / "real" / name)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    pictures = find_images([tmp_path / "link"])
    assert below(tmp_path / "link", pictures) == [
        "a.png", "d.png", "gone.png", "other/c.png", "pipe.png", "self.png", "sub/b.png",
    ]  # fmt: skip
    assert pictures.left_out.phrases() == [
        f"links to folders that are listed already, or that lie above: 1, first {tmp_path}/link/sub/up",
        f"links to nothing, pipes, sockets and devices: 1, first {tmp_path}/link/pipe",
    ]


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png", "closed/b.png", "z.png")
    scan = os.scandir

    def guarded(folder: str) -> Any:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    pictures = find_images([tmp_path])
    assert below(tmp_path, pictures) == ["a.png", "z.png"]
    assert pictures.left_out.phrases() == [f"folders that cannot be read: 1, first {tmp_path}/closed"]


def test_a_tree_deeper_than_the_stack_is_walked(tmp_path: Path) -> None:
    name, limit = "d/" * 200 + "a.png", sys.getrecursionlimit()
    put(tmp_path, name)
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert list(find_images([tmp_path])) == [f"{tmp_path}/{name}"]
    finally:
        sys.setrecursionlimit(limit)


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    put(tmp_path, "x.txt", ".hidden.png", "folder/a.png", "folder/.b/c.png")
    given = [tmp_path / "x.txt", str(tmp_path / ".hidden.png"), f"{tmp_path}/./folder//", tmp_path / "folder" / ".b"]
    assert list(find_images(given)) == [
        f"{tmp_path}/x.txt", f"{tmp_path}/.hidden.png", f"{tmp_path}/./folder//a.png", f"{tmp_path}/folder/.b/c.png",
    ], "paths stand as they were given"  # fmt: skip


def test_what_does_not_exist_is_refused_before_any_work_and_so_are_neither_and_both(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    for name in ("b.png", "gone.png"):
        with pytest.raises(InputError, match=f"{name}: no such file or folder; name pictures, or folders that hold"):
            find_images([tmp_path / "a.png", tmp_path / name])
    for paths, manifest in (([], None), ([tmp_path], tmp_path / "m.csv")):
        with pytest.raises(ConfigError, match="give either pictures .* or --manifest FILE"):
            find_images(paths, manifest=manifest)


class Slow(io.BytesIO):
    """A stream that gives no more than a few bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self.most = most

    def read1(self, size: int = -1, /) -> bytes:
        return super().read1(min(size, self.most))


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
        (b"a.png\r\n\r\n\nb, 'c\".png", ["a.png", "b, 'c\".png"]),
        (b"\xef\xbb\xbfa.png\n", ["a.png"]),
        (b"\xef\xbb\xbfa.png\0b\nc.png\0d\r\0", ["a.png", "b\nc.png", "d\r"]),
        (b"a.png", ["a.png"]),
        (b"ab\0c", ["ab", "c"]),
        (b"", []),
        (b"caf\xe9.png\n", ["caf\udce9.png"]),
    ],
)
@pytest.mark.parametrize("most", [*range(1, 10), 99])
def test_a_list_of_either_kind_is_the_same_however_it_arrives(data: bytes, paths: list[str], most: int) -> None:
    assert list(listed_paths(Slow(data, most))) == paths


def test_a_list_is_read_as_its_paths_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Slow(b"a.png\n" * 10_000, 600)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    pictures = find_images(["-"])
    assert list(itertools.islice(pictures, 250)) == ["a.png"] * 250
    assert stream.tell() == 3 * 600
    assert pictures.count() is None


def test_a_list_that_is_a_picture_or_empty_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JFIF"):
        with pytest.raises(InputError, match="standard input: holds a picture, and a list of paths is read there"):
            list(listed_paths(Slow(start + bytes(99), 2)))
    put(tmp_path, "a.png")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"\n\n")))
    with pytest.raises(InputError, match="-: no path in the list, no picture; give one path a line"):
        list(find_images(["-"]))
    assert len(list(find_images(["-", tmp_path / "a.png"]))) == 1


def test_a_table_is_read_below_its_folder(tmp_path: Path) -> None:
    text = 'label,path\nx,a.png\n\ny,"b, \n c.png"\nz,/abs/d.png\n'
    (tmp_path / "m.CSV").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"w,caf\xe9.png\nv,d\\\xe9.png\n")
    for name in (b"b, \n c.png", b"caf\xe9.png", b"d/\xc3\xa9.png"):
        (tmp_path / os.fsdecode(name)).parent.mkdir(exist_ok=True)
        (tmp_path / os.fsdecode(name)).touch()
    pictures = find_images([], manifest=tmp_path / "m.CSV")
    names = ["a.png", "b, \n c.png", "/abs/d.png", "caf\udce9.png", "d/é.png"]  # the last one by another encoding
    assert pictures.count() == len(names)
    assert list(pictures) == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"m\.csv: the file is empty"),
        ("file,label\na.png,x\n", r"m\.csv: no column 'path'; known: file, label; name it so"),
        ("PATH,Path\na.png,b.png\n", r"m\.csv: columns \['PATH', 'Path'\] could all be 'path'; name one of them"),
        ("path,label\n", r"m\.csv: no rows; a table holds one row per picture"),
        ("path,label\na.png,x\n,y\n", r"m\.csv:3: no path in this row; mend the table"),
        ("path\na.png\nb, c.png\n", r"m\.csv:3: more cells than columns \(2 in 1\), from 'c.png' on; put quotes"),
        ("path\n" + "a" * 200_000 + "\n", r"m\.csv:2: a cell of more than 131072 characters"),
    ],
)
def test_a_table_that_does_not_serve_is_refused_before_any_work(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError, match=message):
        PathTable(tmp_path / "m.csv")


def test_a_manifest_gives_its_pictures_and_those_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_ROWS", 7)
    manifest = index(write_class_folder(tmp_path / "images"), layout="folders").manifest
    write_manifest(tmp_path / "m.parquet", manifest)
    manifest.paths()[3].unlink()
    pictures = find_images([], manifest=tmp_path / "m.parquet")
    assert list(pictures) == [str(path) for path in manifest.paths()]
    assert pictures.count() == 24
    (tmp_path / "other.parquet").write_text("no table")
    with pytest.raises(ManifestError, match=r"other\.parquet: not a readable Parquet file"):
        PathTable(tmp_path / "other.parquet")
    put(tmp_path, "list.txt")
    for name, message in (("nowhere.csv", "no such manifest; name a"), ("list.txt", r"in \.csv; a plain list")):
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            find_images([], manifest=tmp_path / name)
