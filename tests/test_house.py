"""The house stands: who may import whom, and what the command line may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "store": {"store"},
    "pipelines": {"pipelines", "store"},
    "learner": {"learner", "store"},
    "flows": {"flows", "pipelines", "learner", "store"},
}
SOURCES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]
TORCH = {"torch", "torchaudio", "torchvision", "transformers", "webdataset"}  # webdataset imports torch
COMMANDS = (
    "demo doctor synthesize ingest source update compare evaluate report predict similar snapshots promote rollback "
    "sql catalog pretrain serve"
).split()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level name of everything that the file imports, at its head or inside a function."""
    package = path.relative_to(ROOT).parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, package if node.level else str(node.module).partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"import_module", "importlib.import_module"}:
            if node.args and isinstance(name := getattr(node.args[0], "value", None), str):
                yield node.lineno, name.partition(".")[0]


def offenders(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for line, name in imports(path)
        if name in forbidden
    ]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    paths = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == room]
    assert paths
    assert offenders(paths, set(MAY_IMPORT) - MAY_IMPORT[room] | {"tests", "infra"}) == []


def test_store_and_pipelines_do_without_torch() -> None:
    paths = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in {"store", "pipelines"}]
    assert offenders(paths, TORCH) == []


def test_only_deployments_import_prefect() -> None:
    paths = [path for path in SOURCES if path.relative_to(ROOT).parts[:2] != ("flows", "deployments")]
    assert offenders(paths, {"prefect", "prefect_dask"}) == []


def test_only_one_module_imports_torchaudio() -> None:
    paths = [path for path in SOURCES if path.name != "torchaudio_cpu.py"]
    assert offenders(paths, {"torchaudio"}) == []


def test_nothing_reads_what_lies_beside_the_checkout() -> None:
    paths = [*SOURCES, *(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))]
    assert [str(path) for path in paths if "../shared" in path.read_text()] == []


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, flows.cli; print(*{'prefect', 'torch', 'duckdb', 'numpy', 'pyarrow'} & set(sys.modules))"
    assert python(code).split() == []


def test_help_lists_the_commands() -> None:
    listed = python("from flows.cli import main; main(['--help'])").partition("Commands:")[2]
    assert {line.split()[0] for line in listed.splitlines() if line.strip()} >= set(COMMANDS)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
