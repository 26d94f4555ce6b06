"""report.html: one file that shows what a compilation did; nothing in it is fetched or run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from .progress import plain

_WIDTH = 900
_HEIGHT = 170
_LABELS = 70
_COLORS = {
    2: "#d1495b",
    3: "#edae49",
    4: "#00798c",
    5: "#3c9d6d",
    6: "#5b8e7d",
    7: "#4f77a8",
    8: "#30638e",
    16: "#8d96a3",
    32: "#c9cdd3",
}
_OTHER = "#66a182"
_MOST_BARS = 600
_MOST_LOOSE = 20  # float constants outside units that have a line of their own


@dataclass(frozen=True)
class Bar:
    """One bar of a picture: pieces from the bottom up, as height and color."""

    title: str
    pieces: tuple[tuple[float, str], ...]


def render_report(facts: dict[str, Any]) -> str:
    """Returns the page for the content of ``mpqc.json``; timings are left out.

    The same facts give the same bytes.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    template = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")

    def finalize(value: Any) -> Any:  # names may turn lines around or hold control characters
        return plain(value) if isinstance(value, str) and type(value) is not Markup else value

    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=finalize
    )
    units = [unit for unit in facts["units"] if "bits" in unit]
    pictures = {
        "bits": Markup(draw([_bits_bar(unit) for unit in units], "bits per weight")),
        "loss": Markup(draw([_loss_bar(unit) for unit in units], "predicted divergence")),
        "sensitivity": Markup(
            draw([_need_bar(unit) for unit in units], "divergence at 4 bits")
        ),
    }
    return page.from_string(template).render(
        facts=facts,
        pictures=pictures,
        colors=_COLORS,
        of_file=" (a bound for the file alone)" if facts["asked"].get("file") else "",
        sizes=_sizes(facts),
        comparison=quality(facts),
        times=_times(facts),
        kernels=_kernels(facts),
        percent=lambda share: f"{100 * share:.2f} %",
        unbound=_of_any_pass(facts, "refused").get("refused", {}),
        left=_left(facts),
        units=units,
        number=_number,
        loss_of=lambda unit: unit.get("loss"),
        score_of=lambda unit: unit.get("score", {}).get("value"),
        metric=next((unit["score"]["metric"] for unit in units if "score" in unit), ""),
    )


def draw(bars: list[Bar], what: str) -> str:
    """Returns bars as SVG. Titles are escaped here: the result goes into the page as it is."""
    from markupsafe import escape

    bars = _thinned(bars)
    top = max((sum(height for height, _ in bar.pieces) for bar in bars), default=0.0)
    if top <= 0:
        return ""
    step = (_WIDTH - _LABELS) / len(bars)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 10}" role="img" aria-label="{escape(what)}">',
        f'<text x="{_LABELS - 6}" y="12" text-anchor="end">{_number(top)}</text>',
        f'<text x="{_LABELS - 6}" y="{_HEIGHT}" text-anchor="end">0</text>',
    ]
    for at, bar in enumerate(bars):
        parts += _draw_bar(bar, _LABELS + at * step, max(step * 0.85, 0.6), _HEIGHT / top)
    return "".join([*parts, "</svg>"])


def _draw_bar(bar: Bar, left: float, width: float, scale: float) -> list[str]:
    from markupsafe import escape

    base, parts = float(_HEIGHT), [f"<g><title>{escape(plain(bar.title))}</title>"]
    for height, color in bar.pieces:
        base -= height * scale
        parts.append(
            f'<rect x="{left:.2f}" y="{base:.2f}" width="{width:.2f}"'
            f' height="{height * scale:.2f}" fill="{color}"/>'
        )
    return [*parts, "</g>"]


def _thinned(bars: list[Bar]) -> list[Bar]:
    """Returns at most ``_MOST_BARS`` bars: of a huge model, every n-th."""
    stride = -(-len(bars) // _MOST_BARS) or 1
    return bars[::stride]


def _bits_bar(unit: dict[str, Any]) -> Bar:
    """A bar as high as the unit's bits per weight, in the colors of its widths."""
    widths = {float(bits): rows for bits, rows in unit.get("widths", {}).items()}
    weighted = {bits: bits * rows for bits, rows in widths.items()}
    total = sum(weighted.values()) or 1.0
    pieces = tuple(
        (unit["bits"] * part / total, _COLORS.get(int(bits), _OTHER))
        for bits, part in sorted(weighted.items())
    )
    return Bar(f"{unit['name']}: {unit['bits']:.3f} bits per weight", pieces)


def _density(unit: dict[str, Any], loss: float) -> float:
    """Returns a loss per million weights, so that a large table does not hide all others."""
    return float(max(loss, 0.0) * 1e6 / max(unit["rows"] * unit["columns"], 1))


def _loss_bar(unit: dict[str, Any]) -> Bar:
    loss = unit.get("loss") or 0.0
    return Bar(f"{unit['name']}: {_number(loss)}", ((_density(unit, loss), _COLORS[4]),))


def _need_bar(unit: dict[str, Any]) -> Bar:
    """A bar for what the unit would cost if it were stored whole at about four bits."""
    totals = unit.get("sensitivity") or {}
    option = next((one for one in sorted(totals) if one.startswith("4g")), None)
    cost = totals[option] if option is not None else 0.0
    title = f"{unit['name']} at {option}: {_number(cost)}"
    return Bar(title, ((_density(unit, cost), _COLORS[8]),))


def _of_any_pass(facts: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns the report of the pass that reported something as ``key``; empty if none did."""
    return next((one for one in facts.get("passes", {}).values() if key in one), {})


def _left(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns units that stay in float, then the floats outside units, the largest alone."""
    units = [{"bytes": None, **unit} for unit in facts["units"] if unit.get("reason")]
    loose = facts.get("left_in_float", [])
    shown, rest = loose[:_MOST_LOOSE], loose[_MOST_LOOSE:]
    size = sum(one["bytes"] for one in rest)
    more = [{"name": f"{len(rest)} more", "bytes": size, "reason": "smaller than these"}]
    return [*units, *shown, *(more if rest else [])]


def _sizes(facts: dict[str, Any]) -> list[tuple[str, int, int]]:
    before, after = facts["input"], facts["got"]
    if "weight_bytes" not in before:
        return []
    return [
        ("weights", before["weight_bytes"], after["weight_bytes"]),
        ("other constants", before["other_bytes"], after["other_bytes"]),
    ]


def _kernels(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what rounding does to every activation, then to all of them, if it is known.

    The note is the share of the token in the step that was chosen, or why there is none.
    """
    report = _of_any_pass(facts, "kernels")
    kernels = report.get("kernels", {})
    notes = {name: _number(one["alpha"]) for name, one in report.get("scaled", {}).items()}
    notes |= dict.fromkeys(report.get("better_plain", ()), "better without")
    notes |= report.get("closed", {})
    rows = [
        {**one, "note": notes.get(one["activation"], "")}
        for one in kernels.get("activations", ())
    ]
    return [*rows, {**kernels, "activation": "all", "note": ""}] if rows else []


def quality(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns predicted and measured quality, one line each."""
    lines = []
    if facts["predicted"] is not None:
        lines.append(("predicted divergence", _number(facts["predicted"])))
    names = {
        "kl": "measured divergence, nats per token",
        "top1": "same first choice",
        "relative_error": "relative error of outputs",
        "cosine": "cosine similarity of outputs",
    }
    measured = facts["measured"] or {}
    lines += [
        (what, _number(measured[key]))
        for key, what in names.items()
        if measured.get(key) is not None
    ]
    return lines


def _times(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns what products are predicted to take; empty where nothing is known of it."""
    time = _of_any_pass(facts, "time").get("time", {})
    rows = [
        (name, run["original"], run["microseconds"], run["microseconds"] / run["original"])
        for name, run in time.get("products", {}).items()
        if run["original"]
    ]
    return {**time, "rows": rows} if rows else {}


def _number(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
