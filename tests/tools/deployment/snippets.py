"""Runs what a README says, as a reader who copies it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Environments of programs that want other versions of packages than mpqc, or one another.
_LOADERS = Path(__file__).resolve().parents[3] / "build" / "loaders"
LOADERS = _LOADERS / "optimum" / "bin" / "python"
LM_EVAL = _LOADERS / "lm-eval" / "bin" / "lm_eval"
_BLOCK = re.compile(r"^(`{3,})(\w+)\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)


def blocks(folder: Path, language: str) -> list[str]:
    """Returns the blocks of code of a language in ``folder``'s README."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return [code for _, named, code in _BLOCK.findall(text) if named == language]


def run_python(folder: Path, python: str = sys.executable) -> str:
    """Runs the only block of Python in ``folder``, and returns what it prints."""
    (code,) = blocks(folder, "python")
    return run_code(code, folder, python)


def run_code(code: str, folder: Path, python: str = sys.executable, *words: str) -> str:
    """Runs a program in ``folder`` as one without us would."""
    return run_words([python, "-I", "-c", code, *words], folder)


def run_words(words: list[str], folder: Path) -> str:
    """Runs a command in ``folder``, and returns what it prints."""
    ended = subprocess.run(
        words,
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
