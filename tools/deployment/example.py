"""Python that runs a result on an example: the code in a README, which tests run as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ...frontend.model_inputs import ModelInput
    from .kind import Finished

FEW_TOKENS = 8  # made-up token ids
_TOKENIZER = "tokenizer.json"
_BY_TOKEN = ("tokens", "source", "mask", "positions", "segments")
_TEXT = "The quick brown fox jumps over the lazy dog."


def run_by_onnxruntime(result: Finished) -> str:
    """Returns a program that runs ``model.onnx`` in the current folder, once."""
    reads_text = reads_any_length(result)
    encodes = reads_text and _TOKENIZER in result.companions
    imports = ["import numpy as np", "import onnxruntime as ort"]
    lines = [*imports, *(["from tokenizers import Tokenizer"] if encodes else []), ""]
    provider = result.target.deployed_provider
    lines += [f'session = ort.InferenceSession("model.onnx", providers=["{provider}"])']
    if reads_text:
        lines.append(_ids(result, encodes))
    else:
        lines.append("# Replace these numbers with what the model is to read.")
    lines += _feeds(result, reads_text)
    lines += [
        "for output, array in zip(session.get_outputs(), session.run(None, feeds)):",
        "    print(output.name, array.shape)",
    ]
    return "\n".join(lines)


def reads_any_length(result: Finished) -> bool:
    """Tells whether there is one text, of open length, that all inputs by token follow."""
    by_token = [one for one in result.inputs if one.role in _BY_TOKEN]
    return any(one.role == "tokens" for one in by_token) and all(
        len(one.dims) == 2
        and not isinstance(one.dims[1], int)
        and (not isinstance(one.dims[0], int) or one.dims[0] == 1)
        for one in by_token
    )


def _ids(result: Finished, encodes: bool) -> str:
    """Returns the line that makes token ids, no more than the model has been seen to take."""
    tokens = next(one for one in result.inputs if one.role == "tokens")
    most = result.shape(tokens)[1]
    if encodes:
        return f'ids = Tokenizer.from_file("{_TOKENIZER}").encode("{_TEXT}").ids[:{most}]'
    rows = tokens.vocabulary or 1
    return f"ids = {list(range(min(FEW_TOKENS, most, rows)))}  # of a text"


def _feeds(result: Finished, reads_text: bool) -> list[str]:
    """Returns the lines that make ``feeds``; caches of one shape are made in one line."""
    past = [one for one in result.inputs if one.role == "past"]
    alike = len({(result.shape(one), one.dtype) for one in past}) == 1 and len(past) > 1
    single = [one for one in result.inputs if not (alike and one in past)]
    lines = ["feeds = {"]
    lines += [f"    {one.name!a}: {_array(result, one, reads_text)}," for one in single]
    lines.append("}")
    if alike:
        lines += [
            f"cache = {_array(result, past[0], reads_text)}  # nothing has been read yet",
            "feeds |= {",
            "    one.name: cache for one in session.get_inputs() if one.name not in feeds",
            "}",
        ]
    return lines


def _array(result: Finished, one: ModelInput, reads_text: bool) -> str:
    shape, kind = result.shape(one), _type(one.dtype)
    if reads_text:
        made = {
            "tokens": f"np.array([ids], {kind})",
            "source": f"np.array([ids], {kind})",
            "mask": f"np.ones((1, len(ids)), {kind})",
            "positions": f"np.arange(len(ids), dtype={kind})[None]",
            "segments": f"np.zeros((1, len(ids)), {kind})",
            "lengths": f"np.full({shape}, len(ids), {kind})",
        }
        if one.role in made:
            return made[one.role]
    if one.role == "lengths":
        return f"np.full({shape}, {_longest(result.inputs, result)}, {kind})"
    return f"np.{'ones' if one.role == 'mask' else 'zeros'}({shape}, {kind})"


def _longest(inputs: Sequence[ModelInput], result: Finished) -> int:
    """Returns the longest second axis of an example: what a length may be."""
    shapes = [result.shape(one) for one in inputs]
    return max((shape[1] for shape in shapes if len(shape) > 1), default=1)


def _type(dtype: np.dtype[np.generic]) -> str:
    return "np.bool_" if dtype.kind == "b" else f"np.{dtype.name}"
