"""The contract between passes and everything else: a pass, and its context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir

from ....ir import (
    Annotation,
    ArrayStore,
    CachedFile,
    Calibration,
    Capabilities,
    Feeds,
    Unit,
    quantizable,
)
from ....ir.costs import CostTable
from ....ir.text_form import print_record
from .forecast import Forecast
from .outlook import Outlook
from .progress import Progress, SilentProgress
from .work import Kind, Work

if TYPE_CHECKING:
    import torch


class Runner(Protocol):
    """Executes graphs: in torch for sweeps, in the target runtime for proof."""

    def segment(
        self, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
    ) -> torch.nn.Module:
        """Returns a differentiable module that maps ``inputs`` to a tuple of ``outputs``."""
        ...

    def unsupported(self, nodes: Iterable[ir.Node]) -> Mapping[ir.Node, str]:
        """Returns the nodes that ``segment`` cannot run, with the reason."""
        ...

    def session(self, model: ir.Model | Path) -> AbstractContextManager[Session]:
        """Opens a graph or a file in the target runtime; closing it frees everything.

        The weights of a file are not copied into memory.
        """
        ...


class Session(Protocol):
    """A model loaded in the target runtime."""

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the named outputs (all of them by default) for one sample."""
        ...


_WALKS = 4  # over all weights, by a pass that only moves them


@dataclass(frozen=True)
class Item:
    """One piece of work that does not depend on the others.

    Attributes:
        name: What the user knows it by.
        argument: What the work is told, apart from the state; small.
        need: Bytes that the work takes while it runs, estimated.
        cost: What the work takes, in any unit; the dearest goes first.
    """

    name: str
    argument: Any
    need: int = 0
    cost: float = 1.0


class Crew(Protocol):
    """Other processes that have taken up a state."""

    def each(
        self, work: Callable[[State, Any], Any], items: Sequence[Item]
    ) -> Iterator[tuple[int, Any]]:
        """Yields the places of items and ``work(state, item.argument)``, as they end.

        Args:
            work: A function of a module, or an instance of a class of one. It changes nothing
                but files that are the same whoever writes them, for a process may end and
                another one begin again; it returns plain data and numpy arrays.
            items: What to work on.

        Raises:
            MachineError: Processes end again and again, or cannot read the state.
        """
        ...


class Workers(Protocol):
    """Other processes, on this machine or on many, that share its storage."""

    def share(self, state: State, what: str) -> AbstractContextManager[Crew]:
        """Hands a state over for as long as the block runs.

        Args:
            state: What work reads; each process has a copy of its own.
            what: What the user is told meanwhile.
        """
        ...


@dataclass
class PassContext:
    """Everything that a pass may use beside the graph.

    Attributes:
        runner: Executes graphs.
        capabilities: The capabilities of the target.
        arrays: The side store.
        calibration: Samples; None for pipelines that need none.
        cache: Folder for stats that outlive the run; None keeps them in ``scratch``.
        scratch: Folder for temporary files of this run.
        seed: Seed of every random choice.
        progress: Where to show progress.
        original: The model as it was read, for passes that compare against it.
        report: Facts for ``mpqc.json``, filled by passes under their own name.
        costs: What operations take on the machine that the result is for; None for no thought
            of time.
        device: What passes compute on, as torch names it: ``cpu``, ``cuda:0``.
        workers: Other processes that take part in long work; None for the threads of this one.
    """

    runner: Runner
    capabilities: Capabilities
    scratch: Path
    arrays: ArrayStore = field(default_factory=ArrayStore)
    calibration: Calibration | None = None
    cache: Path | None = None
    seed: int = 0
    progress: Progress = field(default_factory=SilentProgress)
    original: Path | None = None
    report: dict[str, Any] = field(default_factory=dict)
    costs: CostTable | None = None
    device: str = "cpu"
    workers: Workers | None = None

    def cached_file(self, *inputs: object) -> CachedFile:
        """Returns the file for a result that depends on ``inputs``, by their text."""
        return CachedFile.of(self.cache or self.scratch, *inputs)


@dataclass(frozen=True)
class State:
    """What work reads: a graph between two passes, and everything that notes speak of.

    Attributes:
        model: The graph.
        context: The context of the pass.
    """

    model: ir.Model
    context: PassContext

    @cached_property
    def units(self) -> Mapping[str, Unit]:
        """The units that can be quantized, by name."""
        return {unit.name: unit for unit in quantizable(self.model)}

    @cached_property
    def prepared(self) -> dict[object, Any]:
        """What work has made of the state for the next piece, by the work."""
        return {}


class Promise(Enum):
    """What the graph computes after a pass, compared with before; validation holds it to this.

    Attributes:
        SAME_GRAPH: Nothing changes but notes.
        SAME_FUNCTION: Every output stays what it was, up to the rounding of floats.
        NARROWED: So does it, up to the rounding of floats of 16 bits.
        SIMULATION: Only weights of units change, to what their codes and scales stand for.
        SAME_CODES: So they do, and units that have codes get other scales at most.
        SAME_SIMULATION: Units are stored as codes, and compute what their simulation computed.
        OTHER: Something else, which nobody checks before ``verify-numerics``.
    """

    SAME_GRAPH = "same graph"
    SAME_FUNCTION = "same function"
    NARROWED = "same function in fewer digits"
    SIMULATION = "simulation"
    SAME_CODES = "same codes"
    SAME_SIMULATION = "same as the simulation"
    OTHER = "other"


@dataclass(frozen=True)
class Pass(ABC):
    """One rewriting step. The dataclass fields are its options.

    The graph verifies before and after a pass; in between it need not.

    Attributes:
        name: What users type; also the file name (with underscores) and the golden folder.
        reads: Annotations that an earlier pass must have written.
        writes: Annotations that later passes may read.
        drops: Annotations that no longer hold afterwards.
        expensive: Whether it takes so long that later passes should look at the graph first.
        measures: Whether its report says how far the result is from the original.
        opset: Of a pass that lowers: the version of the standard operators that it writes;
            0 for any.
        promise: What it leaves of the function that the graph computes.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[type[Annotation], ...]] = ()
    writes: ClassVar[tuple[type[Annotation], ...]] = ()
    drops: ClassVar[tuple[type[Annotation], ...]] = ()
    expensive: ClassVar[bool] = False
    measures: ClassVar[bool] = False
    opset: ClassVar[int] = 0
    promise: ClassVar[Promise] = Promise.OTHER

    def promised(self) -> Promise:
        """Returns what this pass promises with the options that it has."""
        return self.promise

    @abstractmethod
    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Rewrites ``model`` in place; returns whether anything changed."""

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses early if the pass is certain to fail later.

        Called right before an expensive pass, on the graph that it will see.

        Args:
            model: The graph; to be left as it is.
            context: The context that the pass will get.
            forecast: The expected effects of the expensive pass and of those in between.
        """
        del model, context, forecast

    def recall(self, model: ir.Model, context: PassContext) -> None:
        """Notes on the graph what an earlier run left of this pass in the cache, if any.

        Called on the graph that the first expensive pass will see, by those who want to look
        ahead. Nothing on disk changes.
        """
        del model, context

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """Returns what the pass will have to do, from shapes alone.

        Called right before an expensive pass, on the graph that it will see, like
        ``preflight``. By default a pass walks over all weights a few times.

        Args:
            model: The graph; to be left as it is.
            context: The context that the pass will get.
            forecast: The expected effects of the passes in between.
        """
        del context, forecast
        return Work({Kind.WALK: _WALKS * float(sum(unit.size for unit in quantizable(model)))})

    def outlook(
        self, model: ir.Model, context: PassContext, forecast: Forecast
    ) -> Outlook | None:
        """Returns what can be told of the result; None of a pass that meets no budget.

        Called like ``work``.
        """
        del model, context, forecast
        return None

    def forecast(self, before: Forecast) -> Forecast:
        """Returns what the graph will carry after this pass, as far as its options tell."""
        return before.changed(self.writes, self.drops)

    def __str__(self) -> str:
        return print_record(self.name, self)
