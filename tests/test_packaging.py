"""What is installed is what stands in the folders, and importing it stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_PACKAGES = {"tests", "docs", "build", "dist"}
HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "scipy", "networkx")
HELP_SECONDS = 3.0  # design.md asks for 0.3 on a quiet machine; CI's is not quiet


def package_folders() -> Iterator[Path]:
    """Every folder of the package: the root, and each folder with Python in it."""
    yield ROOT
    for top in ROOT.iterdir():
        if top.is_dir() and top.name.isidentifier() and top.name not in NOT_PACKAGES:
            yield from sorted({file.parent for file in top.rglob("*.py")})


def dotted(folder: Path) -> str:
    return ".".join(("mpqc", *folder.relative_to(ROOT).parts))


def package_files() -> Iterator[str]:
    """Every file that belongs in the wheel, by its name there."""
    yield from ("mpqc/__init__.py", "mpqc/py.typed")
    for folder in package_folders():
        if folder != ROOT:
            for file in (*folder.iterdir(), *folder.glob("*/*.txt")):
                if file.is_file() and file.suffix != ".pyc":
                    yield f"mpqc/{file.relative_to(ROOT).as_posix()}"


def absolute_imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and first name of every absolute import in ``file``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, each.name.split(".")[0]) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: setuptools leaves build/ behind and would reuse it."""
    copy = tmp_path_factory.mktemp("source") / "mpqc"
    copytree(ROOT, copy, ignore=ignore_patterns(".*", "build", "dist", "*.egg-info", "*.pyc"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "-w", str(copy / "dist"), str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (built,) = (copy / "dist").glob("mpqc-*.whl")
    return zipfile.ZipFile(built)


def test_every_folder_is_listed_as_a_package() -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        listed = tomllib.load(stream)["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(dotted(folder) for folder in package_folders())


def test_every_package_says_what_it_is() -> None:
    for folder in package_folders():
        assert (folder / "__init__.py").is_file(), f"{dotted(folder)} has no __init__.py"
        text = (folder / "__init__.py").read_text()
        assert text.startswith('"""'), f"{dotted(folder)} has no docstring"


def test_imports_inside_the_package_are_relative() -> None:
    ours = {"mpqc"} | {folder.name for folder in package_folders() if folder.parent == ROOT}
    for folder in package_folders():
        for file in folder.glob("*.py"):
            for line, name in absolute_imports(file):
                assert name not in ours, f"{file.relative_to(ROOT)}:{line}: import {name}"


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if name.startswith("mpqc/")}
    assert inside == set(package_files())


def test_wheel_holds_the_license_and_the_command(wheel: zipfile.ZipFile) -> None:
    by_name = {Path(name).name: name for name in wheel.namelist()}
    assert "Apache License" in wheel.read(by_name["LICENSE"]).decode()
    assert "mpqc = mpqc.tools.cli:main" in wheel.read(by_name["entry_points.txt"]).decode()


@pytest.mark.parametrize("module", ["mpqc", "mpqc.tools.cli"])
def test_import_is_light(module: str) -> None:
    loaded = run_python(f"import sys, {module}; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


def test_help_is_quick_and_light() -> None:
    started = time.perf_counter()
    shown = run_python(
        "import sys; sys.argv = ['mpqc', '--help']\n"
        "from mpqc.tools.cli import main\n"
        "try: main()\n"
        "except SystemExit as leave: assert not leave.code\n"
        f"assert not {set(HEAVY)} & set(sys.modules)\n"
    )
    assert time.perf_counter() - started < HELP_SECONDS
    assert "compile" in shown


def test_one_runtime_only() -> None:
    """The two wheels overwrite each other's files, and nothing says so."""
    installed = {each.metadata["Name"].lower() for each in distributions()}
    assert not {"onnxruntime", "onnxruntime-gpu"} <= installed
    assert not {"onnxruntime-genai", "onnxruntime-genai-cuda"} <= installed
