"""What results do on an NVIDIA GPU: prepared here, measured there, shown as tables.

``prepare`` makes a folder with a model in all its forms, samples, and what each form gives on
the CPU. ``run`` measures them where the device is; ``table`` shows what it found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ....backend.onnxruntime.installation import load_cuda_libraries
from ....ir import UsageError, machine_errors
from ....ir.text_form import did_you_mean
from ...comparison.kept import Kept
from ...option_fields import add_options as add_shared
from ...option_fields import options_in
from ...options import CalibrationOptions
from ...progress import choose_progress
from ..shapes import SHAPES
from .kit import FORMS, read_kit
from .measuring import size_of
from .page import page
from .preparation import Order, prepare_kit
from .steps import PROVIDERS, run_steps, steps

_SHARED = ("calibration", "random_calibration", "samples", "sequence_length")
_MEGA = 1e6


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the three parts need to know."""
    group = parser.add_subparsers(dest="part", metavar="PART", required=True)
    part = group.add_parser("prepare", help="make the folder that the device needs")
    part.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        nargs="?",
        help="Hugging Face folder, exported folder or file; default: SmolLM2-135M",
    )
    part.add_argument("-o", "--output", metavar="DIR", type=Path, required=True)
    part.add_argument("--budget", metavar="BITS", type=float, default=4.5)
    part.add_argument("--preset", metavar="NAME", default="default")
    part.add_argument(
        "--forms", metavar="NAME", nargs="+", default=FORMS, help=f"some of {', '.join(FORMS)}"
    )
    add_shared(part, CalibrationOptions, _SHARED)
    part = group.add_parser("run", help="measure, on the device")
    part.add_argument("folder", metavar="DIR", type=Path)
    part.add_argument("-o", "--output", metavar="FILE", type=Path, required=True)
    part.add_argument(
        "--provider", choices=sorted(PROVIDERS), default="cuda", help="cpu: a dry run"
    )
    part.add_argument(
        "--seconds",
        metavar="N",
        type=float,
        default=480.0,
        help="after so many, begin nothing more; the next run goes on (480)",
    )
    part.add_argument(
        "--shape",
        choices=sorted(SHAPES),
        help="random weights to compile as well (1b; tiny in a dry run)",
    )
    part.add_argument(
        "--again", action="store_true", help="try what failed, or did not end, once more"
    )
    part.add_argument("--overwrite", action="store_true", help="measure everything again")
    part = group.add_parser("table", help="show what was measured")
    part.add_argument("file", metavar="FILE", type=Path)


def run(chosen: argparse.Namespace) -> None:
    """Does one of the three."""
    {"prepare": _prepare, "run": _run, "table": _table}[chosen.part](chosen)


def _prepare(chosen: argparse.Namespace) -> None:
    for name in chosen.forms:
        if name not in FORMS:
            raise UsageError(f"there is no form {name!r}", hint=did_you_mean(name, FORMS))
    calibration = options_in(chosen, CalibrationOptions)
    forms = tuple(one for one in FORMS if one in chosen.forms)
    order = Order(chosen.model, chosen.budget, chosen.preset, forms, calibration)
    kit = prepare_kit(order, chosen.output, choose_progress())
    for form in kit.forms.values():
        print(f"{form.name}: {form.size / _MEGA:.1f} MB, {form.bits:.2f} bits a weight")
    whole = size_of(chosen.output) / _MEGA
    print(f"{chosen.output}: {whole:.1f} MB in all; --forms takes fewer")


def _run(chosen: argparse.Namespace) -> None:
    kit = read_kit(chosen.folder)
    if chosen.overwrite:
        with machine_errors(chosen.output):
            chosen.output.unlink(missing_ok=True)
    forms = {one.name: {"size": one.size, "bits": one.bits} for one in kit.forms.values()}
    given = {**kit.facts, "forms": forms, "kit": kit.key(), "provider": chosen.provider}
    kept = Kept(chosen.output, given)
    if chosen.provider != "cpu":
        load_cuda_libraries()
    shape = chosen.shape or ("tiny" if chosen.provider == "cpu" else "1b")
    shown = choose_progress()
    left = run_steps(
        steps(kit, chosen.provider, shape, shown),
        kept,
        seconds=chosen.seconds,
        again=chosen.again,
        progress=shown,
    )
    if left:
        print(f"no time for {', '.join(left)}: run it again")


def _table(chosen: argparse.Namespace) -> None:
    if not chosen.file.is_file():
        raise UsageError(f"{chosen.file} does not exist", hint="make it with gpu run")
    print(page(chosen.file), end="")
