"""All presets at several budgets on several models: what docs/methods.md is made of.

Goes on where it was after a break. The models are made when they are first needed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ...ir import UsageError
from ...ir.text_form import did_you_mean
from ..comparison import Compared, compare
from ..comparison.files import write_whole
from ..comparison.folder import PICTURE
from ..comparison.methods import split_list
from ..demo import write_halves
from ..export import export_folder
from ..pipelines import PRESETS
from ..progress import choose_progress

_EVAL_SAMPLES = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument(
        "--models", metavar="LIST", nargs="*", default=list(_MODELS), help=", ".join(_MODELS)
    )
    parser.add_argument("--methods", metavar="LIST", nargs="*", default=[])
    parser.add_argument("--budgets", metavar="LIST", nargs="*", default=[])
    parser.add_argument("--file-budgets", metavar="LIST", nargs="*", default=[])
    parser.add_argument(
        "--calibration",
        metavar="PATH",
        type=Path,
        nargs="+",
        help="text; by default the first half of the text that ships with Python",
    )
    parser.add_argument(
        "--text", metavar="PATH", type=Path, nargs="+", help="by default the second half"
    )
    parser.add_argument("--samples", metavar="N", type=int, help="to calibrate on (64)")
    parser.add_argument("--eval-samples", metavar="N", type=int, default=_EVAL_SAMPLES)
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default="build/methods")
    parser.add_argument(
        "--document", metavar="FILE", type=Path, help="write this; pictures beside it"
    )


def run(chosen: argparse.Namespace) -> None:
    """Compares on one model after the other; the document is whole after each."""
    names, progress = split_list(chosen.models), choose_progress()
    for name in names:
        if name not in _MODELS:
            raise UsageError(f"unknown model {name!r}", hint=did_you_mean(name, _MODELS))
    halves = write_halves(chosen.output / "text")
    calibration, texts = chosen.calibration or [halves[0]], chosen.text or [halves[1]]
    found: dict[str, Compared] = {}
    for name in names:
        progress.say(f"model {name}")
        found[name] = compare(
            exported(name, chosen.output / "models", calibration),
            text=texts,
            output=chosen.output / name,
            methods=chosen.methods,
            budgets=chosen.budgets,
            file_budgets=chosen.file_budgets,
            calibration=calibration,
            samples=chosen.samples,
            eval_samples=chosen.eval_samples,
            progress=progress,
        )
        if chosen.document is not None:
            write(chosen.document, found)
    for name, one in found.items():
        print(f"## {name}\n\n{one.table()}")
        problem = one.problem()
        if problem is not None:
            print(f"mpqc: {name}: {problem['message']}", file=sys.stderr)


def exported(name: str, folder: Path, texts: Sequence[Path]) -> Path:
    """Returns a folder with the ONNX model called ``name``, made if it is missing."""
    output = folder / name
    if not (output / "model.onnx").is_file():
        export_folder(_MODELS[name](folder / f"{name}-original", texts), output)
    return output


def write(document: Path, found: dict[str, Compared]) -> None:
    """Writes the tables of all models, and their pictures beside them."""
    parts = [_HEAD, "".join(f"- `{name}`: {one.summary}\n" for name, one in PRESETS.items())]
    for name, one in found.items():
        parts.append(f"\n## {name}\n\n")
        if (one.output / PICTURE).is_file():
            picture = f"{document.stem}-{name}.svg"
            document.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one.output / PICTURE, document.with_name(picture))
            parts.append(f"![{name}: what was lost against what was stored]({picture})\n\n")
        parts.append(one.table())
    write_whole(document, "".join(parts))


_HEAD = """\
# The methods, measured

Every method at every budget, on three models, with the same samples and the same quantizer:
the default pipeline, uniform GPTQ, and the published methods. [compare.md](compare.md)
explains the columns. This command makes the page:

```console
$ python -m mpqc.tools.benchmarks methods --calibration FIRST --text SECOND \\
    --document docs/methods.md
```

It prepares the models and runs the command below for each of them. `make methods` uses the
halves of the text that ships with Python instead.

```console
$ mpqc compare MODEL --budgets 2.5,3,3.5,4,4.5 --calibration FIRST --text SECOND -o DIR
```

FIRST and SECOND are two halves of one text. `smollm2` is the dithered SmolLM2-135M of
`make demo`, `minilm` is all-MiniLM-L6-v2, and `opt` is a small OPT that the command trains
on FIRST. A killed run continues with the same command.

A dash marks a budget of the wrong kind for the method (`cmpq` and `cmpq-grid` bound the file
alone), or one that it cannot meet: the published CPTQuant has only 16, 8 and 4 bits.

"""


def _smollm2(folder: Path, texts: Sequence[Path]) -> Path:
    from ..smollm2 import prepare

    del texts
    return prepare(folder)


def _minilm(folder: Path, texts: Sequence[Path]) -> Path:
    from ..minilm import prepare

    del texts
    return prepare(folder)


def _opt(folder: Path, texts: Sequence[Path]) -> Path:
    from ...frontend.small_opt import write_small_opt
    from ...frontend.text import read_texts, text_files

    if (folder / "config.json").is_file():
        return folder
    return write_small_opt(folder, read_texts(text_files(texts)), choose_progress().track)


_MODELS: dict[str, Callable[[Path, Sequence[Path]], Path]] = {
    "smollm2": _smollm2,
    "minilm": _minilm,
    "opt": _opt,
}
