"""Runs methods on one model, from one export and one set of stats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...frontend.model_source import Source, locate
from ...frontend.samples import feeds_key
from ...ir import UsageError, refuse_overlap
from ...passes.engine.pipeline.progress import SilentProgress
from ..api import named_after
from ..budget import Budget
from ..compilation import Compilation, prepare
from ..evaluate import HeldOut
from ..manifest import versions
from ..option_fields import resolved, takes, utf8_path
from ..options import CalibrationOptions, CompareOptions
from ..stats_cache import stats_folder
from ..watch import Watch
from .files import write_whole
from .folder import COMPILED, PICTURE, RESULTS, TABLE, opened
from .kept import Kept
from .methods import Method, read_methods, settings_for, split_list
from .picture import draw
from .point import FAILED, MEASURED, Point, asked, measure
from .table import report

SCHEMA = "mpqc.comparison/1"
BUDGETS = (2.5, 3.0, 3.5, 4.0, 4.5)
_UNUSED = "openvino"  # points are measured in ONNX Runtime, whatever else is installed


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        output: The folder with table, picture and JSON.
        given: What all points have in common.
        points: The points that were asked for, by budget, then method.
    """

    output: Path
    given: dict[str, Any]
    points: list[dict[str, Any]]

    @property
    def exit_code(self) -> int:
        """What the command exits with: 0 unless a method failed, or no budget was feasible."""
        return max((int(one["exit_code"]) for one in self._bad()), default=0)

    def problem(self) -> dict[str, str] | None:
        """Returns code, message and hint of the gravest failure; None where all is well."""
        bad = self._bad()
        if not bad:
            return None
        worst = max(bad, key=lambda one: int(one["exit_code"]))
        what = f"{worst['method']} at {asked(worst)}: {worst['reason']}"
        message = f"{len(bad)} of {len(self.points)} points failed: {what}"
        return {"code": worst["code"], "message": message, "hint": worst["hint"]}

    def _bad(self) -> list[dict[str, Any]]:
        """Returns what failed; budgets too small for a method count only if all were."""
        if any(one["status"] == MEASURED for one in self.points):
            return [one for one in self.points if one["status"] == FAILED]
        return [one for one in self.points if one["status"] != MEASURED]

    def table(self) -> str:
        """Returns the table in Markdown."""
        return report(self.points, self.given)


@takes(CompareOptions)
def compare(model: Any, given: CompareOptions) -> Compared:
    """Compiles a model by several methods to several budgets and measures every result.

    What an earlier, perhaps interrupted, run into the same folder measured is not measured
    again, unless it failed or its pipeline is another one by now.

    Args:
        model: An .onnx file, a folder with one, or a Hugging Face folder.
        given: What it can be told.

    Raises:
        UsageError: An option is impossible, or the folder holds something else.
        InputError: The model, the samples or a file of methods are broken or unsafe.
        MachineError: The machine lacks something that all methods need.
    """
    options = resolved(given)
    texts: Any = options.text
    bounds = read_budgets(options.budgets, options.file_budgets)
    settings = settings_for(bounds[0], options)
    points = list(points_of(read_methods(options.methods), bounds, options))
    source, shown = locate(utf8_path(model)), options.progress or SilentProgress()
    folder = utf8_path(options.output or named_after(model, "compared"))
    refuse_overlap(folder, _read_by(source, [*settings.calibration, *texts]))
    stats = stats_folder(options.cache, shown.say)
    with opened(folder, overwrite=options.overwrite) as work:
        job = prepare(source, settings, work, stats, shown, Watch())
        held_out = HeldOut.of(
            job.source,
            texts,
            samples=options.eval_samples,
            sequence_length=options.sequence_length,
            progress=shown,
        )
        kept = Kept(folder / RESULTS, _common(job, held_out, texts))
        try:
            kept_models = folder / COMPILED if options.keep else None
            _measure_all(points, kept, job, held_out, kept_models)
        except KeyboardInterrupt as stop:
            what = f"what was measured is in {folder}; the same command goes on from there"
            raise KeyboardInterrupt(what) from stop
    return Compared(folder, kept.given, [kept.facts[point.name] for point in points])


def read_budgets(
    budgets: Sequence[float | str], file_budgets: Sequence[float | str] = ()
) -> list[Budget]:
    """Returns stored bits per weight, each once, ascending; those of the file alone last.

    Raises:
        UsageError: Something is no budget, or a size of files.
    """
    both = budgets if budgets or file_budgets else BUDGETS
    found = {Budget.of(one, None) for one in split_list(map(str, both))}
    found |= {Budget.of(None, one) for one in split_list(map(str, file_budgets))}
    if any(one.bits is None for one in found):
        raise UsageError(
            "methods are compared at equal stored bits per weight",
            hint="write numbers, like --budgets 2.5,3,3.5",
        )
    return sorted(found, key=lambda one: (one.expand, one.bits))


def points_of(
    methods: Sequence[Method], budgets: Sequence[Budget], given: CalibrationOptions
) -> Iterator[Point]:
    """Yields every method at every budget; by budget, so that rows can soon be compared.

    A method that can only bound the file is given file budgets instead, each once.

    Raises:
        UsageError: A method is no pipeline that could run, or an option is impossible.
    """
    seen = set()
    for budget in budgets:
        for method in methods:
            bound = method.bound(budget)
            if (method.name, bound) not in seen:
                seen.add((method.name, bound))
                yield Point(method.name, bound, method.settings(bound, given))


def _read_by(source: Source, files: Sequence[Path | str]) -> list[Path]:
    model = [source.onnx] if source.onnx is not None else []
    return [source.named, *source.folders, *model, *map(Path, files)]


def _common(
    job: Compilation, held_out: HeldOut, texts: Sequence[Path | str]
) -> dict[str, Any]:
    """Returns everything but method and budget that decides a measurement."""
    options = job.settings.options
    return {
        "schema": SCHEMA,
        "model": {key: job.input[key] for key in ("name", "content", "weights")},
        "calibration": job.input["calibration"],
        "text": {
            "files": [Path(one).name for one in texts],
            "samples": len(held_out.feeds),
            "key": feeds_key(held_out.feeds),
        },
        "sequence_length": options.sequence_length,
        "target": options.target,
        "outputs": options.outputs,
        "machine": options.machine,
        "seed": options.seed,
        "device": job.settings.device,
        "versions": {key: one for key, one in versions().items() if key != _UNUSED},
    }


def _measure_all(
    points: Sequence[Point],
    kept: Kept,
    job: Compilation,
    held_out: HeldOut,
    keep: Path | None,
) -> None:
    for at, point in enumerate(points, 1):
        found, place = kept.facts.get(point.name), f"{point.name} bits ({at} of {len(points)})"
        if found is not None and not _is_stale(found, point):
            job.progress.say(f"{place}: measured already")
            continue
        job.progress.say(f"{place}{': again, ' + _why(found) if found else ''}")
        facts = measure(point, job, held_out, keep)
        if facts["status"] != MEASURED:
            job.progress.say(f"{place}: {facts['status']}: {facts['reason']}")
        kept.put(point.name, facts)
        _show(kept)
    _show(kept)


def _is_stale(found: dict[str, Any], point: Point) -> bool:
    return bool(found["status"] == FAILED or found["pipeline"] != point.facts()["pipeline"])


def _why(found: dict[str, Any]) -> str:
    return "it had failed" if found["status"] == FAILED else "its pipeline is another one"


def _show(kept: Kept) -> None:
    """Writes table and picture of what has been measured so far."""
    points, folder = list(kept.facts.values()), kept.path.parent
    write_whole(folder / TABLE, report(points, kept.given))
    picture = draw(points)
    if picture:
        write_whole(folder / PICTURE, picture)
