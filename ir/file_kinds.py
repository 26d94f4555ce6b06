"""Names what a file is when it is not the ONNX model that it was given as."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FileKind:
    """A kind of file that people take for a model.

    Attributes:
        name: What it is, to be read after "is".
        hint: What would work instead.
    """

    name: str
    hint: str


_EXPORT = "give an .onnx file, or a Hugging Face folder with safetensors weights"
_TORCH = FileKind("a PyTorch pickle or checkpoint", f"pickles are never opened; {_EXPORT}")
_SAFETENSORS = FileKind(
    "a safetensors file, which holds weights but no graph",
    "give the Hugging Face folder that it lies in",
)
_HTML = FileKind("a web page, not a model", "the download failed; fetch the file itself again")
_LFS = FileKind("a Git LFS pointer", "fetch the real file with: git lfs pull")

_MAGIC: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"version https://git-lfs", _LFS),
    (0, b"GGUF", FileKind("a GGUF file", "convert it first: tools/smollm2.py shows how")),
    (0, b"\x80\x02", _TORCH),
    (0, b"\x80\x03", _TORCH),
    (0, b"\x80\x04", _TORCH),
    (0, b"\x80\x05", _TORCH),
    (0, b"\x89HDF\r\n", FileKind("an HDF5 (Keras) file", "export it to ONNX with tf2onnx")),
    (4, b"TFL3", FileKind("a TensorFlow Lite file", "export the original model to ONNX")),
    (4, b"ORTM", FileKind("an ORT-format model", "give the .onnx file that it was made from")),
    (0, b"ftrt", FileKind("a TensorRT engine", "give the .onnx file that it was built from")),
    (0, b"ptrt", FileKind("a TensorRT engine", "give the .onnx file that it was built from")),
    (0, b"\x93NUMPY", FileKind("a NumPy array", _EXPORT)),
    (0, b"\x1f\x8b", FileKind("a gzip archive", "unpack it first")),
    (0, b"%PDF", FileKind("a PDF document", _EXPORT)),
)


def _zip_kind(head: bytes) -> FileKind:
    if b"data.pkl" in head or b"/version" in head or b"/data/" in head:
        return _TORCH
    return FileKind("a zip archive", "unpack it first, or " + _EXPORT)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 256 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\r\n\t" for letter in text)


def kind_of(head: bytes) -> FileKind | None:
    """Identifies a file by its first bytes; None if it may be an ONNX model."""
    for at, magic, kind in _MAGIC:
        if head[at : at + len(magic)] == magic:
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(head)
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return _HTML
    if len(head) > 10 and head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return _SAFETENSORS
    if start.startswith((b"{", b"[")) and _is_text(head[:64]):
        return FileKind("a JSON text", _EXPORT)
    if head and _is_text(head):
        return FileKind("a text file", _EXPORT)
    return None
