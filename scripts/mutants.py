"""How strong are the tests: change the code in one place, run the nearest tests, and count the changes that no test
notices.

    python -m scripts.mutants                         # a seeded sample of the rooms below; `make mutants`
    python -m scripts.mutants --modules evaluation.metrics --each 0      # every mutant of one module
    python -m scripts.mutants --out mutants.json

A mutant is one change: a comparison (< becomes <=), an operator, a number, a condition, min and max, a keyword argument
or a statement left out. The tests of the files that import the module run once under coverage; then, for each mutant,
those that reach its statement, and the rest of their files. mutmut and cosmic-ray start an interpreter for each mutant,
and ours needs 10 s to load torch and Transformers; here each mutant is a fork of one that has.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import coverage
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE, TESTS = REPOSITORY / "src", REPOSITORY / "tests"
ROOMS = ("evaluation", "posthoc", "cards", "methods", "data.splits", "tables")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
"""Key of a mutant that no test can tell from the code -> why."""
_TESTS = 120
"""Seconds of tests that a mutant has to survive."""
_SECONDS = 4 * _TESTS
"""Of processor time, for the tests of one mutant; more is an endless loop, and counts as noticed."""
_DRAWINGS = ("evaluation.figures",)
"""Modules whose numbers are places on a drawing: people look at those; they are not changed here."""

_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "argmax": "argmin",
    "argmin": "argmax",
    "minimum": "maximum",
    "maximum": "minimum",
    "train": "val",
    "val": "train",
}


@dataclass(frozen=True)
class Mutant:
    """One change of a module: the node at `path` becomes `new`; `key` tells it and does not depend on line numbers."""

    module: str
    lines: range
    key: str
    path: tuple[object, ...]
    new: ast.AST

    def code(self) -> CodeType:
        """The whole module with the change."""
        file = path_of(self.module)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        _replace(tree, self.path, self.new)
        return compile(ast.fix_missing_locations(tree), str(file), "exec")


def modules(chosen: Sequence[str]) -> list[str]:
    """Dotted names of the modules of some rooms, without `thoraclip.`."""
    found = []
    for name in chosen:
        path = SOURCE / "thoraclip" / name.replace(".", "/")
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        found += [".".join(file.relative_to(SOURCE / "thoraclip").with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in found]


def path_of(module: str) -> Path:
    """The file of a module."""
    path = SOURCE / "thoraclip" / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    found, counts = [], dict[str, int]()
    for path, where, lines, old in _places(tree, (), module, range(0)):
        if module in _DRAWINGS and isinstance(old, ast.Constant) and not isinstance(old.value, bool):
            continue
        for new in _changed(old):
            key = f"{where}: {_text(old)} -> {_text(new)}"
            counts[key] = counts.get(key, 0) + 1
            key += f" #{counts[key]}" if counts[key] > 1 else ""
            found.append(Mutant(module, lines, key, path, new))
    return found


def _text(node: ast.AST) -> str:
    return re.sub(r"\s+", " ", ast.unparse(node))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


_Place = tuple[tuple[object, ...], str, range, ast.AST]


def _places(node: ast.AST, path: tuple[object, ...], where: str, lines: range) -> Iterator[_Place]:
    """(path from the module, name of the function, lines of the statement, node) of everything that may be changed."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        where = f"{where}.{node.name}"
    if isinstance(node, ast.stmt):
        body = getattr(node, "body", None)
        last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
        lines = range(node.lineno, max(last, node.lineno) + 1)
    if path:
        yield path, where, lines, node
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list", "type_params", "bases"}:
            continue
        if isinstance(value, ast.AST):
            yield from _places(value, (*path, field), where, lines)
        elif isinstance(value, list):
            for number, child in enumerate(value):
                if isinstance(child, ast.AST):
                    yield from _places(child, (*path, field, number), where, lines)


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    """What a node may become."""
    new = copy.deepcopy(node)
    if isinstance(new, ast.Compare) and type(new.ops[0]) in _SWAPS:
        new.ops[0] = _SWAPS[type(new.ops[0])]()
        yield new
    elif isinstance(new, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(new.op) in _SWAPS:
        if not (isinstance(new, ast.BinOp) and any(_is_text(side) for side in (new.left, new.right))):
            new.op = _SWAPS[type(new.op)]()
            yield new
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, ast.Not | ast.USub):
        yield new.operand
    elif isinstance(new, ast.If | ast.IfExp) and not isinstance(new.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
        new.test = ast.UnaryOp(ast.Not(), new.test)
        yield new
    elif isinstance(new, ast.Constant) and isinstance(new.value, bool | int | float):
        new.value = not new.value if isinstance(new.value, bool) else new.value + 1
        yield new
    elif isinstance(new, ast.Name) and isinstance(new.ctx, ast.Load) and new.id in _NAMES:
        new.id = _NAMES[new.id]
        yield new
    elif isinstance(new, ast.Attribute) and isinstance(new.ctx, ast.Load) and new.attr in _NAMES:
        new.attr = _NAMES[new.attr]
        yield new
    elif isinstance(new, ast.Expr) and isinstance(new.value, ast.Call):
        yield ast.Pass()
    elif isinstance(new, ast.Call):
        for number, keyword in enumerate(new.keywords):
            if keyword.arg and keyword.arg != "dtype" and isinstance(keyword.value, ast.Name | ast.Attribute):
                less = copy.deepcopy(new)
                del less.keywords[number]
                yield less


def _replace(tree: ast.AST, path: tuple[object, ...], new: ast.AST) -> None:
    place: object = tree
    for step in path[:-1]:
        place = place[step] if isinstance(step, int) else getattr(place, str(step))  # type: ignore[index]
    if isinstance(path[-1], int):
        place[path[-1]] = new  # type: ignore[index]
    else:
        setattr(place, str(path[-1]), new)


def nearest(module: str) -> list[str]:
    """The test files that import the module, the one of its name first; else the folder of its room."""
    room, _, name = module.rpartition(".")
    said = re.compile(rf"thoraclip\.{re.escape(module)}\b|from thoraclip\.{re.escape(room)} import .*\b{name}\b")
    files = [file for file in TESTS.rglob("test_*.py") if file.parent.name not in {"ui", "real"}]
    near = [file for file in files if said.search(file.read_text(encoding="utf-8"))]
    near.sort(key=lambda file: (file.stem != f"test_{name}", room not in file.parts, file.stat().st_size))
    return [str(file) for file in near] or [str(TESTS / module.split(".")[0])]


class _Watch:
    """Notes which test runs which line of some files, and how long each test takes."""

    def __init__(self, files: Sequence[str]) -> None:
        self.coverage = coverage.Coverage(data_file=None, include=list(files), config_file=False)
        self.seconds = dict[str, float]()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        started = time.process_time()
        yield
        self.seconds[item.nodeid] = time.process_time() - started


class _Chosen:
    """Runs first the tests that reach the mutant, those of the module's own file and the quickest first; then others,
    up to `_TESTS` seconds."""

    def __init__(self, module: str, reach: set[str], seconds: dict[str, float]) -> None:
        self.own, self.reach, self.seconds = f"test_{module.rpartition('.')[2]}", reach, seconds

    def _rank(self, item: pytest.Item) -> tuple[bool, bool, float]:
        return item.nodeid not in self.reach, item.path.stem != self.own, self.seconds.get(item.nodeid, 0)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=self._rank)
        total = 0.0
        for number, item in enumerate(items):
            total += self.seconds.get(item.nodeid, 0)
            if total > _TESTS:
                del items[number + 1 :]


@dataclass(frozen=True)
class Reach:
    """What the tests touch: line of a module -> tests; test -> processor seconds."""

    lines: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]

    def of(self, mutant: Mutant) -> set[str]:
        """The tests that run the statement of a mutant; none where it runs on import or in another process."""
        lines = self.lines.get(mutant.module, {})
        return {test for line in mutant.lines for test in lines.get(str(line), []) if test}


def _watched(files: Sequence[str], names: Sequence[str], out: Path) -> None:
    """Run in a fork: the tests of some files, once, on the code as it is."""
    watch = _Watch([str(path_of(name)) for name in names])
    watch.coverage.start()
    code = _pytest(files, watch)
    watch.coverage.stop()
    if code not in {0, 5}:
        raise SystemExit(f"the tests fail on the code as it is: pytest {' '.join(files)}")
    data = watch.coverage.get_data()
    lines = {name: data.contexts_by_lineno(str(path_of(name))) for name in names}
    out.write_text(json.dumps([lines, watch.seconds]), encoding="utf-8")


def reach(names: Sequence[str], *, workers: int) -> Reach:
    """Run the tests nearest to some modules once, and see which test runs which line."""
    files = sorted({file for name in names for file in nearest(name)}, key=lambda file: -Path(file).stat().st_size)
    lines, seconds = {name: dict[str, list[str]]() for name in names}, dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, str(number)) for number in range(min(workers, len(files)))]
        jobs = [
            (lambda number=number, out=out: _watched(files[number :: len(outs)], names, out))
            for number, out in enumerate(outs)
        ]
        if any(code for _, code in _forks(jobs, workers=workers)):
            raise SystemExit("the tests must pass before the code is changed")
        for out in outs:
            some_lines, some_seconds = json.loads(out.read_text(encoding="utf-8"))
            seconds |= some_seconds
            for name, touched in some_lines.items():
                for line, tests in touched.items():
                    lines[name][line] = lines[name].get(line, []) + tests
    return Reach(lines, seconds)


class _Finder(importlib.machinery.SourceFileLoader):
    """Gives one module the code of a mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self._name, self._path = f"thoraclip.{mutant.module}", str(path_of(mutant.module))
        super().__init__(self._name, self._path)
        self._code = mutant.code()

    def get_code(self, fullname: str) -> CodeType:
        return self._code

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._path, loader=self)


def _pytest(arguments: Sequence[str], *plugins: object) -> int:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    fixed = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-n", "0"]
    return int(pytest.main([*fixed, *arguments], plugins=list(plugins)))


def _noticed(mutant: Mutant, reach: Reach) -> None:
    """Run in a fork: exit with 1 where a test notices the mutant."""
    tests = reach.of(mutant)
    files = sorted({test.partition("::")[0] for test in tests}) or nearest(mutant.module)
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    sys.meta_path.insert(0, _Finder(mutant))  # type: ignore[arg-type]
    if _pytest(files, _Chosen(mutant.module, tests, reach.seconds)) not in {0, 5}:
        raise SystemExit(1)


def _forks(jobs: Sequence[Callable[[], None]], *, workers: int) -> Iterator[tuple[int, int]]:
    """Run each job in a fork of its own; yield (number of the job, exit code), as they end."""
    left, running = list(reversed(list(enumerate(jobs)))), dict[int, int]()
    while left or running:
        while left and len(running) < workers:
            number, job = left.pop()
            pid = os.fork()
            if pid == 0:
                os.setsid()
                code = 1
                with suppress(BaseException):
                    job()
                    code = 0
                os._exit(code)
            running[pid] = number
        pid, status = os.wait()
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it started and left
        yield running.pop(pid), os.waitstatus_to_exitcode(status)


def run(chosen: Sequence[Mutant], reach: Reach, *, workers: int) -> Iterator[tuple[Mutant, str]]:
    """Yield (mutant, killed | survived | timeout), as they end."""
    jobs = [(lambda mutant=mutant: _noticed(mutant, reach)) for mutant in chosen]
    for number, code in _forks(jobs, workers=workers):
        what = "survived" if code == 0 else "timeout" if code in {-signal.SIGXCPU, -signal.SIGKILL} else "killed"
        yield chosen[number], what


def main() -> None:
    """Print survivors and a table; exit 1 where fewer than 95 % of the mutants are killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--modules", nargs="+", default=list(ROOMS), metavar="ROOM", help="such as evaluation or evaluation.metrics"
    )
    parser.add_argument("--each", type=int, default=4, help="mutants drawn from each module; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", type=Path, help="such a JSON file: try only the mutants that survived there")
    parser.add_argument("--out", type=Path, help="JSON file for the result of every mutant")
    given = parser.parse_args()
    for name in given.modules:
        if not path_of(name).exists():
            parser.error(f"--modules {name}: no such room or module of thoraclip; name one such as evaluation.metrics")
    equivalent = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    earlier = json.loads(given.again.read_text(encoding="utf-8")) if given.again else []
    survivors = {one["key"] for one in earlier if one["result"] == "survived"}
    chosen, names = list[Mutant](), modules(given.modules)
    for name in names:
        found = [one for one in mutants(name) if one.key not in equivalent]
        rng = random.Random(f"{given.seed} {name}")
        some = rng.sample(found, min(given.each or len(found), len(found)))
        if given.again:
            some = [one for one in found if one.key in survivors]
        chosen += sorted(some, key=lambda one: (one.lines.start, one.key))
    import tests.preloaded_libraries  # noqa: F401  what each fork has

    results: list[dict[str, object]] = []
    touched = reach(sorted({mutant.module for mutant in chosen}), workers=given.workers)
    for number, (mutant, what) in enumerate(run(chosen, touched, workers=given.workers), start=1):
        line = mutant.lines.start
        results.append({"module": mutant.module, "line": line, "key": mutant.key, "result": what})
        mark = "" if what == "killed" else f"  {what.upper()} line {line}: {mutant.key}"
        print(f"{number} of {len(chosen)}{mark}", flush=True)
        if given.out:
            given.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    total = killed = 0
    for room in given.modules:
        of_room = [r for r in results if str(r["module"]).startswith(room)]
        dead = sum(r["result"] != "survived" for r in of_room)
        print(f"{room}: {dead} of {len(of_room)} killed")
        total, killed = total + len(of_room), killed + dead
    print(f"all: {killed} of {total} killed ({100 * killed / max(total, 1):.1f} %)")
    sys.exit(killed < 0.95 * total)


if __name__ == "__main__":
    main()
