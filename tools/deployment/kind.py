"""What a kind of output folder is: what it refuses, where its files go, how they are run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from . import KINDS

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...backend.endpoint import Endpoint
    from ...frontend.model_inputs import ModelInput
    from ...frontend.model_source import Source
    from ...ir import Capabilities, Feeds
    from ...passes.engine.pipeline.base import PassContext


@dataclass(frozen=True)
class Finished:
    """A result whose files are written, all in one folder, before it is laid out.

    Attributes:
        folder: Where they are: ``model.onnx``, its data, companions, parts.
        name: What the model is called.
        companions: The names of tokenizer and settings files in the folder.
        settings: The content of its ``config.json``; empty when there is none.
        inputs: What a caller feeds, with roles.
        outputs: What the runtime says that it returns.
        sample: Arrays that the model has been run on; None when there are none.
        target: What the result is for.
    """

    folder: Path
    name: str
    companions: tuple[str, ...]
    settings: Mapping[str, Any]
    inputs: tuple[ModelInput, ...]
    outputs: tuple[Endpoint, ...]
    sample: Feeds | None
    target: Capabilities

    @classmethod
    def of(
        cls,
        folder: Path,
        model: ir.Model,
        source: Source,
        companions: Sequence[str],
        outputs: tuple[Endpoint, ...],
        context: PassContext,
        kept: Mapping[str, Any],
    ) -> Finished:
        """Returns the facts of a result that passes have made of ``source``."""
        from ...frontend.model_inputs import model_inputs

        samples = context.calibration
        return cls(
            folder=folder,
            name=str(kept.get("input", {}).get("name", "model")).removesuffix(".onnx"),
            companions=tuple(companions),
            settings=source.settings("config.json"),
            inputs=tuple(model_inputs(model)),
            outputs=outputs,
            sample=samples.feeds[0] if samples is not None else None,
            target=context.capabilities,
        )

    @property
    def model(self) -> Path:
        """The file with the graph."""
        return self.folder / "model.onnx"

    def shape(self, one: ModelInput) -> tuple[int, ...]:
        """Returns sizes that an input may have: the sample's, else 1 where one is open."""
        if self.sample is not None and one.name in self.sample:
            return tuple(self.sample[one.name].shape)
        return tuple(dim if isinstance(dim, int) else 1 for dim in one.dims)


@dataclass(frozen=True)
class Code:
    """Something to type, in the README.

    Attributes:
        said: A line of Markdown before it.
        language: Of the code: ``python``, ``console`` and the like.
        text: The code.
    """

    said: str
    language: str
    text: str


@dataclass(frozen=True)
class Layout:
    """How a folder has been laid out.

    Attributes:
        model: The file with the graph, where it is now.
        runtimes: What runs it, and which versions: lines of Markdown.
        code: How it is run.
        notes: What else there is to know: lines of Markdown.
    """

    model: Path
    runtimes: tuple[str, ...]
    code: tuple[Code, ...]
    notes: tuple[str, ...] = ()


def _nothing(source: Source) -> None:
    """Refuses no model."""


@dataclass(frozen=True)
class Kind:
    """A kind of output folder.

    Attributes:
        program: What runs such a folder, as a sentence says it.
        lay_out: Moves and adds files; returns how they lie.
        refuse: Raises a UsageError for a model that the program cannot run. Asked before any
            work, where a Hugging Face folder has no ONNX file yet, and again after its export.
        extra: Bytes of the files that it adds, apart from texts.
    """

    program: str
    lay_out: Callable[[Finished], Layout]
    refuse: Callable[[Source], None] = _nothing
    extra: Callable[[], int] = lambda: 0


def find_kind(name: str) -> Kind:
    """Returns a kind by its name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in KINDS:
        from ...ir import UsageError
        from ...ir.text_form import did_you_mean

        raise UsageError(f"unknown kind of folder {name!r}", hint=did_you_mean(name, KINDS))
    return cast("Kind", importlib.import_module(f".{name}", __package__).KIND)
