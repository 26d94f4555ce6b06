"""From a graph that passes have lowered to the files of a result, in a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..backend.endpoint import Endpoint
from ..backend.onnxruntime.runner import open_session
from ..frontend.model_source import Source
from ..ir import (
    ExcessLoss,
    InfeasibleBudget,
    LeftInFloat,
    StoredPart,
    all_nodes,
    drop_note,
    forget_notes,
    machine_errors,
    note_of,
    write_model,
)
from ..passes.engine.pipeline.base import PassContext
from ..passes.engine.pipeline.instruments import TimePasses
from ..passes.engine.pipeline.pipeline import Pipeline
from .companions import carry_companions
from .deployment import KINDS
from .deployment.kind import Finished, find_kind
from .deployment.readme import render_readme
from .manifest import manifest, measured_by, plain_json, write_manifest
from .parts import cut_in_parts
from .pass_options import is_lowering
from .run_times import run_times

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Outcome:
    """What stands in the stage.

    Attributes:
        facts: The content of ``mpqc.json``.
        size: Bytes of all files.
        model: The graph's file, relative to the stage.
    """

    facts: dict[str, Any]
    size: int
    model: Path


def finish(
    stage: Path,
    model: ir.Model,
    source: Source,
    context: PassContext,
    pipeline: Pipeline,
    ran: int,
    kept: dict[str, Any],
    timer: TimePasses,
) -> Outcome:
    """Writes the result's files into ``stage`` and proves that the runtime loads the model.

    Args:
        stage: The folder to fill.
        model: The graph.
        source: The original.
        context: What the passes were given; its report goes into ``mpqc.json``.
        pipeline: The whole pipeline.
        ran: How many of its passes have run.
        kept: The settings.
        timer: What the passes cost.

    Raises:
        InfeasibleBudget: The result takes more bits than were asked for.
    """
    write_model(_for_users(model), stage / "model.onnx")
    companions = carry_companions(source, stage, context.capabilities)
    outputs = _load_all(stage, context, allow_fallback=bool(kept.get("allow_fallback")))
    # A run may stop before it lowers anything, with floats.
    lowered = any(map(is_lowering, pipeline.passes[:ran]))
    runs = run_times(stage / "model.onnx", context) if lowered else {}
    kind = find_kind(str(kept.get("for", KINDS[0])))
    done = Finished.of(stage, model, source, companions, outputs, context, kept)
    with machine_errors(stage):
        layout = kind.lay_out(done)
    facts = manifest(stage, layout.model, model, context, pipeline, kept, timer, runs)
    if lowered:
        _check_bits(facts)
    facts = plain_json(facts)
    with machine_errors(stage):
        write_manifest(stage, facts, render_readme(facts, kind, layout, done.name, model))
    size = sum(one.stat().st_size for one in stage.rglob("*") if one.is_file())
    return Outcome(facts, size, layout.model.relative_to(stage))


def _load_all(
    stage: Path, context: PassContext, *, allow_fallback: bool
) -> tuple[Endpoint, ...]:
    """Proves that the runtime loads the model and its parts; returns the model's outputs.

    Args:
        stage: The folder with the model.
        context: Says which provider has to run it.
        allow_fallback: Whether some nodes may run on the CPU instead.

    Raises:
        MachineError: Some do, and may not.
    """
    model, provider = stage / "model.onnx", context.capabilities.provider
    outputs: tuple[Endpoint, ...] = ()
    for path in (*cut_in_parts(model, context.progress.say), model):
        with open_session(path, provider) as session:
            if not allow_fallback:
                session.refuse_fallback()
            outputs = session.outputs
    return outputs


def _for_users(model: ir.Model) -> ir.Model:
    """Returns the graph without what passes have noted for one another.

    That is in ``mpqc.json`` and in dumps; in a small model it is a good part of the file. So
    are the shapes of what makes weights of codes, which anybody can infer. Of the nodes that
    do so, those that read what is stored say of which weight.
    """
    result = model.clone()
    forget_notes(result, keep=(StoredPart, LeftInFloat))
    for node in all_nodes(result.graph):
        note = note_of(node, StoredPart)
        if note is None or note.role != "expansion":
            continue
        for made in node.outputs:
            made.type = made.shape = None
        if not any(value is not None and value.is_initializer() for value in node.inputs):
            drop_note(node, StoredPart)
    return result


def check_loss(context: PassContext, pipeline: Pipeline, *, accept: bool) -> None:
    """Refuses a result that lost far more than predicted; warns of one that lost more.

    Raises:
        ExcessLoss: It did, and ``accept`` is not set.
    """
    measured = measured_by(pipeline, context) or {}
    if "warning" not in measured:
        return
    worst = ", ".join(f"{one['unit']!r}" for one in measured["blamed"])
    if measured.get("excessive") and not accept:
        raise ExcessLoss(
            f"the result {measured['warning']}; the largest loss was predicted for {worst}",
            hint="--accept-loss writes it anyway",
        )
    context.progress.say(f"warning: the result {measured['warning']}")


def _check_bits(facts: Mapping[str, Any]) -> None:
    """Refuses a result beyond its budget, whichever pass left more in float than was counted.

    Raises:
        InfeasibleBudget: It takes more bits than were asked for.
    """
    asked, got = facts["asked"].get("bits"), facts["got"]["bits"]
    if asked is None or got <= asked * (1 + _ROUNDING):
        return
    left = [unit for unit in facts["units"] if unit.get("reason")]
    why = f"; {left[0]['name']!r} stays in float: {left[0]['reason']}" if left else ""
    raise InfeasibleBudget(
        f"the result takes {got:.3f} bits per weight, {asked:g} were asked for{why}",
        hint="ask for a larger budget, or take another preset",
    )
