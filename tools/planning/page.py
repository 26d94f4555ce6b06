"""A plan as one page of text."""

from __future__ import annotations

from collections.abc import Iterator

from ..table import aligned
from ..time_left import spoken
from .forecast import Step
from .look import loss_at
from .plan import Plan, Size

_SHOWN_BITS = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)
_MEGABYTE, _GIGABYTE = 1e6, 1e9


def page(plan: Plan) -> Iterator[str]:
    """Yields the lines."""
    yield f"{plan.model}: {plan.weights:,} weights"
    yield from plan.settings
    yield ""
    if plan.asked is not None and plan.smallest is not None and plan.largest is not None:
        rows = [("result", "bits per weight", "all files", "weights in memory")]
        rows.append(_size("as asked", plan.asked))
        rows.append(_size("smallest possible", plan.smallest))
        rows.append(_size("all options at their largest", plan.largest))
        yield from aligned(rows)
        yield ""
    steps = [("pass", "time", "memory", "kept on disk", "disk meanwhile")]
    steps += [_step(one) for one in plan.steps]
    total = Step("total", plan.seconds, plan.memory, plan.kept, plan.scratch)
    yield from aligned([*steps, _step(total)])
    yield ""
    yield from _losses(plan)
    for warning in plan.warnings:
        yield f"warning: {warning}"


def _size(what: str, size: Size) -> tuple[str, str, str, str]:
    memory = "" if size.memory is None else f"{size.memory / _MEGABYTE:,.1f} MB"
    return what, f"{size.bits:.3f}", f"{size.disk / _MEGABYTE:,.1f} MB", memory


def _step(step: Step) -> tuple[str, str, str, str, str]:
    seconds = f"{step.seconds:.1f} s" if step.seconds < 10 else spoken(step.seconds)
    seconds += " (measured)" if step.measured else ""
    return step.name, seconds, _room(step.memory), _room(step.kept), _room(step.scratch)


def _room(size: float) -> str:
    return f"{size / _GIGABYTE:.2f} GB" if size else ""


def _losses(plan: Plan) -> Iterator[str]:
    if not plan.curve:
        yield "predicted loss: comes with the first compilation on these samples"
        return
    known = [(bits, loss_at(plan.curve, bits)) for bits in _SHOWN_BITS]
    lowest, highest = plan.curve[0][0], plan.curve[-1][0]
    inside = [(bits, loss) for bits, loss in known if loss and lowest <= bits <= highest]
    rows = [("bits per weight", *(f"{bits:g}" for bits, _ in inside))]
    rows.append(("predicted loss", *(f"{loss:.3g}" for _, loss in inside)))
    yield from aligned(rows)
    if plan.predicted is not None:
        yield f"predicted loss as asked: {plan.predicted:.3g}"
