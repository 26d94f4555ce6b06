"""What the commands can be told, each option once.

The parser, the recipe keys, the signature of ``mpqc.compile``, the command in ``mpqc.json``
and docs/options.md are made from these fields: a new option is one field here. A value of None
says nothing, so that a recipe or the default decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .deployment import KINDS
from .efforts import DEFAULT_EFFORT, EFFORTS
from .kernels import KERNELS
from .option_fields import option, setting
from .watch import Watch

OPERATORS = ("any", "standard")
PROVE_ON = ("auto", "cpu")
OUTPUTS = ("auto", "logits", "regression")
OBJECTIVES = ("loss", "latency")
_SEVERAL_PATHS = Sequence[Path | str] | Path | str


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What a model is compiled to, and how."""

    budget: float | str | None = option(
        "stored bits per weight, like 3.5, or the size of all files, like 60MB; kernels read"
        " codes of the width that the file has",
        metavar="BUDGET",
        exclusive="budget",
    )
    file_budget: float | str | None = option(
        "the same for the file alone: codes may take more room in memory",
        metavar="BUDGET",
        exclusive="budget",
    )
    latency: float | None = setting(
        "time of the quantized products, at most, relative to the original's: of a token and"
        " of a prompt, or of a run; without it, 1 as far as a percent of time costs no more"
        " than a percent of the loss",
        float,
    )
    objective: str = setting(
        "what to make least within the budget: loss or latency",
        default="loss",
        known=OBJECTIVES,
    )
    max_loss: float | None = setting(
        "predicted loss, at most: nats per token, or a relative squared error", float
    )
    for_: str = setting(
        "the program that the output folder is laid out for: genai (onnxruntime-genai),"
        " optimum (and sentence-transformers), triton, web (a page with onnxruntime-web), or"
        " plain",
        default=KINDS[0],
        known=KINDS,
    )
    activations: str = setting(
        "what weights of 8 bits are multiplied by: floats (none), int8 (targets qdq and"
        " tensorrt), uint8 (qdq and ort-cpu), fp8 (tensorrt; weights are such floats too),"
        " or auto: floats, but uint8 where ort-cpu cannot keep a bound on time without",
        default="auto",
        known=("auto", "none", "int8", "uint8", "fp8"),
    )
    prove_on: str = setting(
        "where the result is proven by running it: on what the target is for (auto), or on the"
        " cpu, for a device that is not here",
        default=PROVE_ON[0],
        known=PROVE_ON,
    )
    allow_fallback: bool = option(
        "accept nodes that run on the CPU instead of the target's device",
        bool,
        recorded=True,
    )
    recipe: Path | str | None = option(
        "a TOML file with a pipeline and defaults for these options", Path, metavar="FILE"
    )
    effort: str = setting(
        "how much the compilation may take: fast (preset fast, 24 samples), default, or high"
        " (512 samples); preset and samples can still be given",
        default=DEFAULT_EFFORT,
        known=EFFORTS,
    )
    preset: str | None = setting(
        "a pipeline by its name, as mpqc presets lists them; without passes, default"
    )
    passes: str | None = option(
        "a pipeline as text, instead of a preset", short="-p", recipe="pipeline"
    )


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the result goes."""

    output: Path | str | None = option(
        "the folder to make; default: MODEL-BUDGET in the current folder",
        Path,
        metavar="DIR",
        short="-o",
    )
    overwrite: bool = option("replace an existing output", bool)
    as_small_as_possible: bool = option(
        "if the budget cannot be met, take the smallest that can", bool
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What a model is calibrated for, and on what."""

    target: str = setting(
        "what the result shall run on: ort-cpu, ort-cuda or qdq (standard ONNX)",
        default="ort-cpu",
    )
    kernels: str = setting(
        "products of codes: always, never (expand all weights to floats at load), or auto (not"
        " in small models, where they round activations and save little time)",
        default="auto",
        known=KERNELS,
    )
    calibration: _SEVERAL_PATHS = option(
        "text files, .npz or .safetensors files, or folders of them",
        Path,
        many=True,
        recorded=True,
    )
    random_calibration: bool = option(
        "calibrate on noise; the result is marked", bool, recorded=True
    )
    samples: int = setting("calibration samples", int, default=64, least=1, most=100_000)
    sequence_length: int = setting(
        "tokens in a sample", int, default=512, least=1, most=1 << 20
    )
    outputs: str = setting(
        "what the outputs are, of which the sweeps differentiate the divergence: logits, the"
        " numbers of a regression, or auto",
        default="auto",
        known=OUTPUTS,
    )
    machine: str = setting(
        "the machine that the result is for, by the table of what kernels take there: auto"
        " (this one) or a name that mpqc doctor lists",
        default="auto",
    )
    device: str = setting(
        "what to compute on here: cpu, cuda (or cuda:1, ...), mps, or auto (a CUDA device if"
        " there is one, else the CPU)",
        default="auto",
    )
    seed: int = setting("seed of every random choice", int, default=0, most=1 << 62)


@dataclass(frozen=True, kw_only=True)
class WorkersOptions:
    """Who does the work; the result is the same."""

    workers: int | str | None = option(
        "processes that share the long work, through Ray: how many to start here, or the"
        " address of a cluster (HOST:PORT, or auto); default: the threads of this process",
        metavar="N|ADDRESS",
    )


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What Python can say of a model, and of the places of a run."""

    example_inputs: Sequence[Any] | None = option(
        "for a torch module: one set of positional inputs", python_only=True
    )
    dynamic_shapes: Any = option(
        "for a torch module: as torch.export.export takes it", python_only=True
    )
    cache: Path | str | None = option(
        "folder for stats that outlive the run; default: the user's cache folder",
        Path,
        python_only=True,
    )
    progress: Any = option("where to show progress", python_only=True)


@dataclass(frozen=True, kw_only=True)
class CompileOptions(
    SourceOptions, WorkersOptions, Watch, CalibrationOptions, OutputOptions, MethodOptions
):
    """Everything that ``mpqc compile`` can be told besides the model."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(SourceOptions, CalibrationOptions, MethodOptions):
    """Everything that ``mpqc plan`` can be told besides the model: what decides a run."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What ``mpqc export`` can be told besides the folder."""

    operators: str = setting(
        "any, or standard: only operators of the ONNX standard, as TensorRT needs them",
        default=OPERATORS[0],
        known=OPERATORS,
    )

    output: Path | None = option(
        "default: DIR-onnx in the current folder", Path, metavar="DIR", short="-o"
    )
    overwrite: bool = option("replace an existing output", bool)


@dataclass(frozen=True, kw_only=True)
class LintOptions:
    """What ``mpqc lint`` can be told besides the file."""

    target: str = setting(
        "what the file shall run on: ort-cpu, ort-cuda, tensorrt, openvino or web",
        default="ort-cpu",
    )
    fix: bool = option("repair what can be repaired without changing any number", bool)
    output: Path | None = option(
        "folder for the repaired model", Path, metavar="DIR", short="-o"
    )
    overwrite: bool = option("replace an existing output", bool)
    sarif: Path | None = option(
        "also write the findings here, for a CI system", Path, metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class OptOptions(WorkersOptions, Watch):
    """What ``mpqc opt`` can be told besides the dump."""

    passes: str | None = option(
        "passes to run; default: those that the dump's run had still to do", short="-p"
    )
    output: Path | None = option(
        "folder for the result; without it, the graph is printed",
        Path,
        metavar="DIR",
        short="-o",
    )
    device: str | None = option(
        "what to compute on, as for compile; default: what the dump's run was told"
    )
    overwrite: bool = option("replace an existing output", bool)
    print: bool = option("print the graph", bool)


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What ``mpqc eval`` can be told besides the two models."""

    text: Sequence[Path] = option(
        "text files, or .npz/.safetensors files with arrays named like the inputs",
        Path,
        many=True,
        required=True,
    )
    samples: int = option("samples to measure on", int, default=8, least=1, most=100_000)
    sequence_length: int = option(
        "tokens in a sample", int, default=512, least=2, most=1 << 20
    )
    target: str = option("what to run both on", default="ort-cpu")
    runtime: str = option(
        "onnxruntime, openvino, or torch for what the standard says", default="onnxruntime"
    )
    exact: bool = option(
        "forbid the runtime to round activations where the graph does not", bool
    )


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What ``mpqc generate`` can be told besides the folder and the prompt."""

    max_tokens: int = option("tokens to write at most", int, default=64, least=1, most=1 << 20)


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What ``mpqc doctor`` can be told."""

    measure: bool = option(
        "time the kernels of this machine (under two minutes), for later compilations", bool
    )
    probe: str | None = option(
        "list and time every row of a target's table as it was tried here; or all",
        metavar="TARGET",
    )


@dataclass(frozen=True, kw_only=True)
class CompareOptions(CalibrationOptions):
    """What ``mpqc compare`` can be told besides the model."""

    text: _SEVERAL_PATHS = option(
        "what to measure on: text or array files, as for mpqc eval",
        Path,
        many=True,
        required=True,
    )
    methods: Sequence[str] = option(
        "names of presets, or .toml files of pipelines (see docs/compare.md); default: all"
        " presets",
        many=True,
    )
    budgets: Sequence[float | str] = option(
        "stored bits per weight; default: 2.5,3,3.5,4,4.5", many=True
    )
    file_budgets: Sequence[float | str] = option(
        "the same for the file alone, as compile --file-budget", many=True
    )
    eval_samples: int = option("samples to measure on", int, default=8, least=1, most=100_000)
    output: Path | str | None = option(
        "default: MODEL-compared; what has been measured there is not measured again",
        Path,
        metavar="DIR",
        short="-o",
    )
    overwrite: bool = option("measure everything again", bool)
    keep: bool = option("keep the compiled models, in DIR/compiled", bool)
    cache: Path | str | None = option(
        "folder for stats; default: the user's cache folder", Path, python_only=True
    )
    progress: Any = option("where to show progress", python_only=True)
