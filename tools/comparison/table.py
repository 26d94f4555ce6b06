"""The tables of a comparison, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.workloads import PROMPT, RUN, TOKEN
from ..progress import plain
from .markdown import markdown, number
from .point import MEASURED, asked

Facts = dict[str, Any]
_COLUMNS = (
    ("KL", "kl", ".4f"),
    ("perplexity", "result_perplexity", ".2f"),
    ("top-1", "top1", ".1%"),
    ("relative error", "relative_error", ".4f"),
    ("cosine", "cosine", ".4f"),
    ("lowest cosine", "lowest_cosine", ".4f"),
    ("predicted", "predicted", ".4f"),
    ("stored bits", "bits", ".3f"),
    ("whole file", "whole_file_bits", ".3f"),
    ("resident bits", "resident_bits", ".3f"),
    ("bytes", "result_bytes", ",d"),
    *(
        (f"time of a {run}{more}", f"{run}_{key}", ".2f")
        for run in (TOKEN, PROMPT, RUN)
        for more, key in (("", "time"), (", predicted", "predicted"))
    ),
    ("seconds", "seconds", ".1f"),
)


def report(points: Sequence[Facts], given: Facts) -> str:
    """Returns what was measured, the original's figures, and where the time went.

    Args:
        points: The measurements.
        given: What they have in common.
    """
    parts = [
        _head(given),
        overview(points),
        results(points),
        _original(points),
        _reasons(points),
        _time(points),
    ]
    lines = "\n".join(part for part in parts if part).split("\n")
    return "\n".join(map(plain, lines))


def overview(points: Sequence[Facts]) -> str:
    """Returns what was lost, methods against budgets; empty for a single method."""
    key, title = damage(points)
    lost = {(one["method"], asked(one)): one.get(key) for one in points}
    methods = list(dict.fromkeys(name for name, _ in lost))
    budgets = list(dict.fromkeys(asked(one) for one in sorted(points, key=_order)))
    if len(methods) < 2:
        return ""
    cells = {name: ["-"] * len(budgets) for name in methods}
    for at, bits in enumerate(budgets):
        found = {m: v for (m, b), v in lost.items() if b == bits and v is not None}
        for name, value in found.items():
            text = number(value, ".4f")
            cells[name][at] = f"**{text}**" if value == min(found.values()) else text
    header = [title, *(f"{bits} bits" for bits in budgets)]
    return markdown(header, [[name, *row] for name, row in cells.items()])


def _order(point: Facts) -> tuple[bool, float]:
    return bool(point.get("file")), point["budget"]


def damage(points: Sequence[Facts]) -> tuple[str, str]:
    """Returns the figure that tells what was lost, and its name in words."""
    if any("kl" in one for one in points):
        return "kl", "KL divergence, nats per token"
    return "relative_error", "relative error of outputs"


def results(points: Sequence[Facts]) -> str:
    """Returns a line for every point, by budget; a failure takes the place of the figures."""
    columns = [one for one in _COLUMNS if any(one[1] in point for point in points)]
    columns = columns or [("result", "status", "s")]
    rows = [_row(point, columns) for point in sorted(points, key=_order)]
    return markdown(["method", "budget", *(title for title, _, _ in columns)], rows)


def _row(point: Facts, columns: Sequence[tuple[str, str, str]]) -> list[str]:
    start = [point["method"], asked(point)]
    if point["status"] != MEASURED:
        return [*start, point["status"], *("-" for _ in columns[1:])]
    return [*start, *(number(point.get(key), form) for _, key, form in columns)]


def _head(given: Facts) -> str:
    text, calibration = given["text"], given["calibration"]
    lines = [
        f"{given['model']['name']}: {given['model']['weights']:,} weights,"
        f" target {given['target']}.",
        f"Calibrated on {calibration['source']}.",
        f"Measured on {text['samples']} samples of {', '.join(text['files'])}.",
    ]
    return "\n".join(lines) + "\n"


def _original(points: Sequence[Facts]) -> str:
    one = next((point for point in points if point["status"] == MEASURED), None)
    if one is None:
        return ""
    perplexity = one.get("original_perplexity")
    tail = f" and a perplexity of {perplexity:.2f}" if perplexity is not None else ""
    return f"The original has {one['original_bytes']:,} bytes{tail}.\n"


def _reasons(points: Sequence[Facts]) -> str:
    """Returns why points could not be measured, each cause once."""
    causes: dict[tuple[str, str, str], list[str]] = {}
    for point in points:
        if point["status"] != MEASURED:
            cause = point["method"], point["status"], point["reason"]
            causes.setdefault(cause, []).append(asked(point))
    return "".join(
        f"- {method} at {', '.join(budgets)}: {status}: {' '.join(reason.split())}\n"
        for (method, status, reason), budgets in causes.items()
    )


def _time(points: Sequence[Facts]) -> str:
    """Returns the seconds of every pass, the mean over a method's budgets."""
    measured = [point for point in points if point["status"] == MEASURED]
    methods = list(dict.fromkeys(point["method"] for point in measured))
    passes = list(dict.fromkeys(name for one in measured for name in one["pass_seconds"]))
    by_method = {name: [p for p in measured if p["method"] == name] for name in methods}
    rows = [
        [name, *(_mean([p["pass_seconds"].get(name) for p in by_method[m]]) for m in methods)]
        for name in passes
    ]
    sweep = [_mean([p["sweep_seconds"] for p in by_method[m]]) for m in methods]
    rows.append(["calibration, once for all budgets", *sweep])
    return markdown(["seconds", *methods], rows) if measured else ""


def _mean(seconds: Sequence[float | None]) -> str:
    known = [one for one in seconds if one is not None]
    return number(sum(known) / len(known) if known else None, ".1f")
