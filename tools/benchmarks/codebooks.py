"""Seconds on one core to fit a codebook to every input channel of a weight."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..comparison.kept import Kept
from ..comparison.markdown import markdown
from .results import show

_GRID_BITS = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("--rows", metavar="N", type=int, default=4096)
    parser.add_argument("--columns", metavar="K", type=int, default=4096)
    parser.add_argument("--bits", metavar="B", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("-o", "--output", metavar="DIR", type=Path)


def run(chosen: argparse.Namespace) -> None:
    """Fits normally distributed weights, freely and on a grid of 8 bits."""
    found = measure(chosen.rows, chosen.columns, chosen.bits)
    if chosen.output is not None:
        kept = Kept(chosen.output / "codebooks.json")
        for bits, facts in found.items():
            kept.put(f"{bits} bits", facts)
    rows = [
        [
            str(bits),
            *(f"{facts[key]:.4g}" for key in ("seconds", "error", "grid", "grid_error")),
        ]
        for bits, facts in found.items()
    ]
    head = ["bits", "free, CPU seconds", "error", "grid, CPU seconds", "error on the grid"]
    show(chosen.output, "codebooks", markdown(head, rows))


def measure(rows: int, columns: int, widths: list[int]) -> dict[int, dict[str, float]]:
    """Returns CPU seconds and relative squared errors by width."""
    import torch

    from ...passes.engine.numerics.codebooks import Coded, free_levels, grid_levels

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(columns, rows, generator=generator)
    weights = torch.rand(rows, generator=generator)
    scaled = channels * (127 / channels.abs().amax(dim=0))
    price = weights / (127 / channels.abs().amax(dim=0)).square()

    def timed(
        fit: Callable[[], Coded], exact: torch.Tensor, cost: torch.Tensor
    ) -> list[float]:
        start = time.process_time()
        coded = fit()
        seconds = time.process_time() - start
        error = ((coded.decode() - exact).square() * cost).sum(dtype=torch.float64)
        return [seconds, float(error / (exact.square() * cost).sum(dtype=torch.float64))]

    wide = price.expand_as(scaled)
    found = {}
    for bits in widths:
        free = timed(partial(free_levels, channels, weights, bits), channels, weights)
        grid = timed(partial(grid_levels, scaled, wide, bits, _GRID_BITS), scaled, price)
        names = ("seconds", "error", "grid", "grid_error")
        found[bits] = dict(zip(names, [*free, *grid], strict=True))
    torch.set_num_threads(threads)
    return found
