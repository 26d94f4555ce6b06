"""README.md: what a folder holds, how good it is, what runs it and how it is made again."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ..report import quality
from .markdown_text import code_block, code_span, escaped

if TYPE_CHECKING:
    import onnx_ir as ir

    from .kind import Kind, Layout

README = "README.md"
_BETWEEN_PASSES = re.compile(r",(?![^{]*\})")


def render_readme(
    facts: dict[str, Any], kind: Kind, layout: Layout, name: str, model: ir.Model
) -> str:
    """Returns the page for the content of ``mpqc.json``; timings are left out.

    Args:
        facts: The content of ``mpqc.json``.
        kind: What the folder is laid out for.
        layout: How.
        name: What the model is called.
        model: The graph.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:  # names are not ours
        return (
            escaped(value) if isinstance(value, str) and type(value) is not Markup else value
        )

    page = Environment(
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    template = files(__package__).joinpath("readme.md.j2").read_text(encoding="utf-8")
    return page.from_string(template).render(
        facts={"warning": "", **facts, "measured": _with_warning(facts["measured"])},
        program=Markup(kind.program),
        layout=layout,
        name=name,
        title=Markup(f"{code_span(name)}: {facts['got']['bits']:.3f} bits per weight"),
        asked=_asked(facts["asked"]),
        passes=_BETWEEN_PASSES.sub(",\n", facts["pipeline"]),
        quality=quality(facts),
        measured_on=_measured_on(facts["measured"]),
        opset=model.opset_imports.get("", 0),
        ir_version=model.ir_version,
        code=lambda text: Markup(code_span(text)),
        block=lambda text, language: Markup(code_block(text, language)),
        markdown=Markup,
    )


def _with_warning(measured: dict[str, Any] | None) -> dict[str, Any]:
    return {"warning": "", **(measured or {})}


def _asked(asked: dict[str, Any]) -> str:
    """Returns the budget in words."""
    if asked.get("bytes") is not None:
        said = f"{asked['bytes']:,} bytes for all files"
    elif asked.get("bits") is not None:
        said = f"{asked['bits']:g} bits per weight"
    else:
        return "passes of its own"
    return f"{said}, of the file alone" if asked.get("file") else said


def _measured_on(measured: dict[str, Any] | None) -> str:
    """Returns what was measured on; empty where nothing was measured."""
    if not measured or "samples" not in measured:
        return ""
    held = measured.get("held_out", 0)
    return f"{measured['samples']} samples, {held} of which calibration had not seen"
