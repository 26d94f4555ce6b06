"""A folder with a page, opened in headless Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import mpqc
from mpqc.backend.onnxruntime.runner import open_session
from mpqc.ir import UsageError
from mpqc.tools.deployment.web import find_runtime

from ...e2e import models
from .. import tiny_models
from .snippets import blocks

pytestmark = [pytest.mark.ort, pytest.mark.timeout(180)]
JAVASCRIPT = Path(__file__).resolve().parents[2] / "e2e" / "javascript"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
FEW: dict[str, Any] = {"samples": 4, "sequence_length": 16, "preset": "fast"}
_WITHOUT_MODULES = Path("/")


def _lacking() -> str:
    if CHROMIUM is None:
        return "needs Chromium"
    if not (JAVASCRIPT / "node_modules" / "onnxruntime-web").is_dir():
        return "needs onnxruntime-web: `make javascript` installs it"
    return ""


in_a_browser = pytest.mark.skipif(bool(_lacking()), reason=_lacking())


@pytest.fixture(autouse=True)
def beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(JAVASCRIPT)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def opened(folder: Path, profile: Path, page: str = "index.html") -> str:
    """Returns the page as it stands when its scripts have run."""
    assert CHROMIUM is not None
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words += [f"--user-data-dir={profile}", "--virtual-time-budget=60000"]
    with served(folder) as address:
        ended = subprocess.run(
            [*words, f"{address}/{page}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def made(model: Path, tmp_path: Path, **more: Any) -> Path:
    given = {"budget": 8.5, "output": tmp_path / "out", "for_": "web", **FEW}
    return mpqc.compile(model, random_calibration=True, **given | more).output


def answers(page: str) -> dict[str, tuple[list[int], list[float]]]:
    """Returns sizes and first numbers of each output that a page shows."""
    found = {}
    for text in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL):
        head, numbers, *_ = html.unescape(text).split("\n")
        name, sizes = re.fullmatch(r"(.*): \[(.*)\]", head).groups()  # type: ignore[union-attr]
        values = [float(one) for one in numbers.removesuffix(", ...").split(", ")]
        found[name] = ([int(one) for one in sizes.split(", ")], values)
    return found


@in_a_browser
@pytest.mark.parametrize(
    ("make", "feeds"),
    [
        (
            lambda folder: tiny_models.vector_model(folder / "v.onnx"),
            {"x": np.zeros((1, 64), np.float32)},
        ),
        (tiny_models.language_folder, {"input_ids": np.arange(8)[None]}),
    ],
)
def test_the_page_shows_what_the_model_says(
    make: Any, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = made(make(tmp_path / "model"), tmp_path)
    page = opened(out, tmp_path / "profile")
    assert "Done in" in page
    with open_session(out / "model.onnx") as session:
        wanted = session.run(feeds)
    found = answers(page)
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        sizes, values = found[name]
        assert sizes == list(array.shape)
        assert values == pytest.approx(array.ravel()[:8].tolist(), abs=1e-4)


@in_a_browser
def test_the_code_in_the_readme_runs_in_a_page(tmp_path: Path) -> None:
    folder = tiny_models.language_folder(tmp_path / "model")
    out = made(folder, tmp_path)
    (code,) = blocks(out, "js")
    shown = code.replace("console.log(name, dims)", "document.write(name, ' ', dims)")
    (out / "own.html").write_text(f'<script type="module">{shown}</script>')
    assert "logits 1,8,256" in opened(out, tmp_path / "profile", "own.html")


@in_a_browser
def test_names_of_others_stay_text(tmp_path: Path) -> None:
    path = tiny_models.vector_model(tmp_path / "<b>&amp;.onnx")
    model = onnx.load(path)
    name = "</script><script>document.title='taken'</script>"
    model.graph.node[0].input[0] = model.graph.input[0].name = name
    onnx.save(model, path)
    out = made(path, tmp_path)
    page = opened(out, tmp_path / "profile")
    assert "Done in" in page
    assert "<title>&lt;b&gt;&amp;amp;</title>" in page
    assert html.escape(name, quote=False) in page  # as the legend of its fields


def test_without_the_package_the_readme_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(_WITHOUT_MODULES)
    monkeypatch.delenv("NODE_PATH", raising=False)
    assert find_runtime() is None
    out = made(tiny_models.vector_model(tmp_path / "v.onnx"), tmp_path)
    assert list((out / "runtime").iterdir()) == []
    fill, serve, *_ = blocks(out, "console")
    assert "npm pack onnxruntime-web" in fill
    assert "http.server" in serve
    if CHROMIUM is not None:
        page = opened(out, tmp_path / "profile")
        assert "there is no onnxruntime-web in runtime/" in page


@in_a_browser
def test_the_files_come_from_where_node_looks(tmp_path: Path) -> None:
    found = find_runtime()
    assert found == JAVASCRIPT / "node_modules" / "onnxruntime-web" / "dist"
    out = made(tiny_models.vector_model(tmp_path / "v.onnx"), tmp_path)
    version = json.loads((found.parent / "package.json").read_text())["version"]
    assert f"onnxruntime-web {version} is in `runtime/`" in (out / "README.md").read_text()
    for one in (out / "runtime").iterdir():
        assert one.read_bytes() == (found / one.name).read_bytes()
    assert not re.search(r"https?://", (out / "index.html").read_text())


def test_inputs_that_no_page_can_make_are_refused(tmp_path: Path) -> None:
    path = models.in_constant_nodes(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("words", TensorProto.STRING, ["batch"])
    )
    onnx.save(model, path)
    with pytest.raises(UsageError, match="cannot make the input 'words'"):
        made(path, tmp_path)
