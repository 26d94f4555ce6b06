"""How much quicker a result generates text than its original, in onnxruntime-genai."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from ...backend.onnxruntime.generation import Speed, generation_speed
from ..comparison.kept import Kept
from ..comparison.markdown import markdown
from ..progress import choose_progress
from .results import show


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("original", metavar="ORIGINAL", type=Path, help="exported folder")
    parser.add_argument("compiled", metavar="COMPILED", type=Path, help="compiled folder")
    parser.add_argument("--prompt-tokens", metavar="N", type=int, default=128)
    parser.add_argument("--new-tokens", metavar="N", type=int, default=128)
    parser.add_argument("--runs", metavar="N", type=int, default=5, help="runs of each (5)")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path)


def run(chosen: argparse.Namespace) -> None:
    """Lets the two take turns, so that a busy machine slows both."""
    progress = choose_progress()
    folders = {"original": chosen.original, "compiled": chosen.compiled}
    found: dict[str, list[Speed]] = {name: [] for name in folders}
    turns = [(name, folder) for _ in range(chosen.runs) for name, folder in folders.items()]
    for name, folder in progress.track(turns, len(turns), "generating"):
        speed = generation_speed(
            folder, prompt_tokens=chosen.prompt_tokens, new_tokens=chosen.new_tokens
        )
        found[name].append(speed)
    if chosen.output is not None:
        kept = Kept(chosen.output / "speed.json")
        for name, speeds in found.items():
            kept.put(name, {"runs": [vars(speed) for speed in speeds]})
    show(chosen.output, "speed", table(found))


def table(found: dict[str, list[Speed]]) -> str:
    """Returns medians over the runs, and how they compare."""
    rows = []
    for what, key in (("generating", "generation"), ("reading the prompt", "prompt")):
        slow, quick = (
            statistics.median(getattr(speed, key) for speed in found[name])
            for name in ("original", "compiled")
        )
        rows.append([what, f"{slow:.1f}", f"{quick:.1f}", f"{quick / slow:.2f}x"])
    return markdown(["tokens a second, median", "original", "compiled", "ratio"], rows)
