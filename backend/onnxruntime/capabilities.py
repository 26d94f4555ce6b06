"""The capability table of ONNX Runtime's targets, and whether this machine can run one."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import Any

from ...ir import Capabilities, Evidence, Kernel, UsageError
from ...ir.text_form import did_you_mean

_WHEELS = ("onnxruntime", "onnxruntime-gpu")
_ENTRIES = {  # beside the kernels: the keys of their widths, and those of their evidence
    "lookup_bits": "lookup",
    "array_bits": "array",
    "convolution_bits": "convolution",
    "integer_bits": "integer",
    "expanding": "expanding",
}


@cache
def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files(__package__).joinpath("capabilities.toml").read_text("utf-8"))


def targets() -> tuple[str, ...]:
    """Returns the names of the targets that the table knows."""
    return tuple(_tables())


def load(target: str) -> Capabilities:
    """Returns what ``target`` can run.

    Raises:
        UsageError: There is no such target.
        ValueError: An entry of the table does not say how it is known.
    """
    if target not in _tables():
        raise UsageError(f"unknown target {target!r}", hint=did_you_mean(target, targets()))
    table = _tables()[target]
    return Capabilities(
        target=target,
        provider=table["provider"],
        runtime=table["runtime"],
        kernels=tuple(_kernel(target, entry) for entry in table["kernels"]),
        lookup_bits=tuple(table["lookup_bits"]),
        lookup=table["lookup"],
        array_bits=tuple(table["array_bits"]),
        convolution_bits=tuple(table.get("convolution_bits", ())),
        row_tile=table["row_tile"],
        expanding=tuple(table["expanding"]),
        lowering=table.get("lowering", "lower-matmul-nbits"),
        whole_groups=table.get("whole_groups", False),
        keeps_columns=table.get("keeps_columns", True),
        integer_bits=tuple(table.get("integer_bits", ())),
        arrays=table.get("arrays", "expand"),
        activation_types=tuple(table.get("activation_types", ())),
        needs_headroom=table.get("needs_headroom", True),
        stands_in=table.get("stands_in", False),
        integer_time=table.get("integer_time", Capabilities.integer_time),
        conversion=table.get("conversion", Capabilities.conversion),
        deployed=table.get("deployed", ""),
        contrib=table.get("contrib", True),
        finishing=tuple(table.get("finishing", ())),
        signed_scales=table.get("signed_scales", True),
        half=table.get("half", False),
        hardware=table["hardware"],
        also=tuple(table.get("also", ())),
        evidence=_evidence_beside(target, table),
    )


def _kernel(target: str, entry: dict[str, Any]) -> Kernel:
    lists = {name: tuple(entry.get(name, ())) for name in ("groups", "legal", "times")}
    if lists["times"] and len(lists["times"]) != len(lists["legal"]):
        raise ValueError(f"{target}, {entry['bits']} bits: a time for each legal group")
    evidence = _evidence(f"{target}, {entry['bits']} bits", entry.get("evidence"))
    return Kernel(**{**entry, **lists, "evidence": evidence})


def _evidence_beside(target: str, table: dict[str, Any]) -> dict[str, Evidence]:
    """Returns the evidence for everything that the table has beside kernels."""
    given = table.get("evidence", {})
    return {
        name: _evidence(f"{target}, {key}", given.get(name))
        for key, name in _ENTRIES.items()
        if table.get(key)
    }


def _evidence(where: str, given: dict[str, str] | None) -> Evidence:
    """Reads how an entry of the table is known.

    Raises:
        ValueError: It does not say so.
    """
    if not given:
        raise ValueError(f"{where}: no evidence")
    try:
        return Evidence(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def installed_runtime_problem(target: str) -> str | None:
    """Returns in one line why this machine cannot run ``target``, or None when it can.

    Raises:
        UsageError: There is no such target.
    """
    table = load(target)
    installed = {name: version for name in _WHEELS if (version := _version(name))}
    if not installed:
        return "ONNX Runtime is not installed: pip install onnxruntime"
    if len(installed) > 1:
        return "onnxruntime and onnxruntime-gpu overwrite each other: uninstall one of them"
    (name, version), oldest = next(iter(installed.items())), table.runtime.split()[-1]
    if _numbers(version) < _numbers(oldest):
        return f"{name} {version} is too old for {target}, which needs {oldest}"
    return _missing_provider(table)


def _missing_provider(table: Capabilities) -> str | None:
    try:
        import onnxruntime
    except ImportError as error:
        return f"ONNX Runtime does not load: {' '.join(str(error).split())}"
    if table.provider in onnxruntime.get_available_providers():
        return None
    return f"this build of ONNX Runtime has no {table.provider}, which {table.target} needs"


def _version(wheel: str) -> str:
    try:
        return metadata.version(wheel)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """Returns major and minor: patch releases and local suffixes decide nothing."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])
