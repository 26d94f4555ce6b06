"""Table and picture of all tools beside mpqc."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....ir import InputError
from ...comparison.chart import Chart, Point
from ...comparison.files import write_whole
from ...comparison.markdown import markdown, number
from ...comparison.point import MEASURED
from ...pipelines import DEFAULT_PRESET

_OURS = "mpqc"
_HEADER = (
    *("", "stored bits", "bits in its file", "KL", "perplexity", "top-1"),
    *("mpqc at no more bits", "KL over mpqc's", "seconds", "measured from"),
)


def table(facts: Mapping[str, Mapping[str, Any]], compared: Path | None) -> str:
    """Returns a line for each result by size, mpqc's among them, and what failed."""
    ours = our_points(compared)
    done = {name: one for name, one in facts.items() if "kl" in one}
    rows = [(bits, _our_row(bits, one)) for bits, one in ours.items()]
    rows += [(one["bits"], _row(name, one, ours)) for name, one in done.items()]
    rows.sort(key=lambda row: row[0])
    return markdown(_HEADER, [row for _, row in rows]) + _failures(facts)


def our_points(compared: Path | None) -> dict[float, dict[str, Any]]:
    """Returns what mpqc's default method was measured to cost, by stored bits.

    Raises:
        InputError: The file was not written by ``mpqc compare``.
    """
    if compared is None:
        return {}
    try:
        found = json.loads(compared.read_text(encoding="utf-8"))["measured"].values()
        ours = [one for one in found if one["method"] == DEFAULT_PRESET]
        return {float(one["bits"]): one for one in ours if one["status"] == MEASURED}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{compared} was not written by mpqc compare") from error


def _our_row(bits: float, one: Mapping[str, Any]) -> list[str]:
    return [
        *(f"**{_OURS} --budget {one['budget']:g}**", f"**{bits:.3f}**", f"{bits:.3f}"),
        *(f"**{one['kl']:.4f}**", number(one.get("result_perplexity"), ".2f")),
        *(number(one.get("top1"), ".1%"), "", "", number(one.get("seconds"), ".0f")),
        "its own file",
    ]


def _row(
    name: str, one: Mapping[str, Any], ours: Mapping[float, Mapping[str, Any]]
) -> list[str]:
    affordable = [bits for bits in ours if bits <= one["bits"]]
    rival = ours[max(affordable)]["kl"] if affordable else None
    return [
        *(name, f"{one['bits']:.3f}", number(one.get("file_bits"), ".3f")),
        f"{one['kl']:.4f}",
        *(number(one.get("result_perplexity"), ".2f"), number(one.get("top1"), ".1%")),
        number(rival, ".4f"),
        number(one["kl"] / rival if rival else None, ".2f"),
        *(number(one.get("seconds"), ".0f"), one["measured"]),
    ]


def _failures(facts: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"- {name}: {one['failed']}\n" for name, one in facts.items() if "failed" in one]
    return "".join(["\nWithout a result:\n\n", *lines]) if lines else ""


def write(facts: Mapping[str, Mapping[str, Any]], compared: Path | None, folder: Path) -> None:
    """Writes table and picture of what has been measured so far."""
    write_whole(folder / "field.md", table(facts, compared))
    series: dict[str, list[Point]] = defaultdict(list)
    series[_OURS] = [(bits, one["kl"]) for bits, one in our_points(compared).items()]
    for one in facts.values():
        if "kl" in one:
            series[one["peer"]].append((one["bits"], one["kl"]))
    chart = Chart("stored bits per weight", "KL divergence, nats per token", joined=(_OURS,))
    write_whole(folder / "field.svg", chart.draw(series))
