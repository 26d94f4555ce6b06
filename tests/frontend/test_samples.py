from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

from mpqc.frontend.array_files import read_arrays
from mpqc.frontend.model_inputs import HeadShape, model_inputs, random_feed, token_feed
from mpqc.frontend.model_source import Source
from mpqc.frontend.samples import SampleMaker, feeds_key
from mpqc.ir import InputError, UsageError

TABLE, PLACES = ", ".join(["0"] * 200), ", ".join(["0"] * 36)
DECODER = """<ir_version: 9, opset_import: ["" : 18]>
decoder (int64[batch, tokens] words, int64[batch, all] attention_mask,
         int64[batch, tokens] position_ids, float[batch, 2, past, size] past_key_0)
    => (float[batch, tokens, 4] y)
    <float[50, 4] table = {TABLE}, float[9, 4] places = {PLACES}> {
    shaped = Identity(words)
    a = Gather(table, shaped)
    b = Gather(places, position_ids)
    y = Add(a, b)
}""".replace("TABLE", TABLE).replace("PLACES", PLACES)


@pytest.fixture
def decoder() -> ir.Model:
    return ir.from_onnx_text(DECODER)


def test_tokens_are_found_by_what_the_graph_does(decoder: ir.Model) -> None:
    roles = {one.name: one.role for one in model_inputs(decoder)}
    assert roles == {
        "words": "tokens",
        "attention_mask": "mask",
        "position_ids": "positions",
        "past_key_0": "past",
    }
    tokens = next(one for one in model_inputs(decoder) if one.role == "tokens")
    assert tokens.vocabulary == 50


def test_a_table_is_found_behind_the_last_of_the_ids() -> None:
    """As in a decoder that is called once a character."""
    last = DECODER.replace("Identity(words)", "Gather <axis = 1> (words, one)").replace(
        "<float[50, 4]", "<int64[1] one = {-1}, float[50, 4]"
    )
    tokens = next(one for one in model_inputs(ir.from_onnx_text(last)) if one.role == "tokens")
    assert (tokens.name, tokens.vocabulary) == ("words", 50)


def test_everything_around_the_tokens_is_made_up(decoder: ir.Model) -> None:
    feed = token_feed(model_inputs(decoder), np.array([5, 6, 7]), HeadShape(2, 8))
    assert feed["words"].tolist() == [[5, 6, 7]]
    assert feed["attention_mask"].tolist() == [[1, 1, 1]]
    assert feed["position_ids"].tolist() == [[0, 1, 2]]
    assert feed["past_key_0"].shape == (1, 2, 0, 8)
    with pytest.raises(InputError, match="head size"):
        token_feed(model_inputs(decoder), np.array([5]), HeadShape(2, None))


SPEECH = """<ir_version: 9, opset_import: ["" : 18]>
both (int64[batch, heard] input_ids, int64[batch, heard] attention_mask,
      int64[batch, said] decoder_input_ids, float[batch, 2, past, 4] past_key_values_0_key)
    => (float[batch, heard, 4] x, float[batch, said, 4] y)
    <float[50, 4] table = {TABLE}> {
    x = Gather(table, input_ids)
    y = Gather(table, decoder_input_ids)
}""".replace("TABLE", TABLE)


def test_an_encoder_reads_the_first_half_and_its_decoder_the_second() -> None:
    inputs = model_inputs(ir.from_onnx_text(SPEECH))
    assert [one.role for one in inputs] == ["source", "mask", "tokens", "past"]
    feed = token_feed(inputs, np.arange(1, 8), HeadShape(2, 4))
    assert feed["input_ids"].tolist() == [[1, 2, 3, 4]]
    assert feed["attention_mask"].tolist() == [[1, 1, 1, 1]]
    assert feed["decoder_input_ids"].tolist() == [[5, 6, 7]]


WINDOW = """<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>
windowed (float[batch, tokens, 32] x, float[batch, 1, past, 8] past_key,
          float[batch, 1, past, 8] past_value, int32[batch] ends, int32 total)
    => (float[batch, tokens, 16] y) {
    y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1,
        local_window_size = 6, sliding_window_cache = 1>
        (x, , , past_key, past_value, ends, total)
}"""


def test_a_cache_of_a_window_is_as_wide_as_the_window() -> None:
    inputs = model_inputs(ir.from_onnx_text(WINDOW))
    feed = random_feed(inputs, 9, np.random.default_rng(0), HeadShape(1, 8))
    assert feed["past_key"].shape == (1, 1, 6, 8)


def test_noise_fits_the_inputs(decoder: ir.Model) -> None:
    source = np.random.default_rng(0)
    feed = random_feed(model_inputs(decoder), 6, source, HeadShape(2, 8))
    assert feed["words"].shape == (1, 6)
    assert 0 <= feed["words"].min() <= feed["words"].max() < 50
    assert feed["past_key_0"].shape == (1, 2, 0, 8)


def test_lengths_and_ids_of_other_tables_are_made_up() -> None:
    """Lengths of 0 hide everything, and an index beyond its table ends the run."""
    text = DECODER.replace("int64[batch, all] attention_mask", "int32[batch] input_lengths")
    decoder = ir.from_onnx_text(text.replace("position_ids", "tones"))
    source = np.random.default_rng(0)
    feed = random_feed(model_inputs(decoder), 60, source, HeadShape(2, 8))
    assert feed["input_lengths"].tolist() == [60]
    assert feed["tones"].max() == 8


PLAIN = """<ir_version: 9, opset_import: ["" : 18]>
plain (float[batch, 3] x) => (float[batch, 3] y) { y = Relu(x) }"""


@pytest.fixture
def maker(tmp_path: Path) -> SampleMaker:
    source = Source(tmp_path, tmp_path / "model.onnx", (tmp_path,))
    return SampleMaker.of(ir.from_onnx_text(PLAIN), source)


def calibrate(maker: SampleMaker, *paths: Path, samples: int = 8) -> list[float]:
    found = maker.calibration(paths, samples=samples, sequence_length=4)
    return [float(feed["x"][0, 0]) for feed in found.feeds]


def test_arrays_are_cut_into_samples(maker: SampleMaker, tmp_path: Path) -> None:
    numbers = np.arange(5, dtype=np.float32)[:, None].repeat(3, 1)
    np.savez(tmp_path / "a.npz", x=numbers)
    save_file({"x": numbers[:2] + 10}, tmp_path / "b.safetensors")
    assert calibrate(maker, tmp_path / "a.npz") == [0, 1, 2, 3, 4]
    assert calibrate(maker, tmp_path) == [0, 1, 2, 3, 4, 10, 11]
    assert calibrate(maker, tmp_path / "a.npz", samples=2) == [0, 2]


def test_a_sample_may_have_its_own_batch_axis(maker: SampleMaker, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.ones((4, 1, 3)))
    found = maker.calibration([tmp_path / "a.npz"], samples=9, sequence_length=4)
    assert [feed["x"].shape for feed in found.feeds] == [(1, 3)] * 4
    assert found.feeds[0]["x"].dtype == np.float32


def test_noise_only_when_asked(maker: SampleMaker, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        calibrate(maker)
    first, again = (
        maker.calibration(samples=3, sequence_length=4, random=True, seed=1) for _ in range(2)
    )
    assert first.random
    assert first.key == again.key
    with pytest.raises(UsageError):
        maker.calibration([tmp_path], samples=3, sequence_length=4, random=True)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(64 << 20))
    with pytest.raises(InputError, match="times its size"):
        read_arrays(path)


def test_a_lying_header_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lie.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999), }\n"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy)
    with pytest.raises(InputError, match="claims the shape"):
        read_arrays(path)
    path.write_bytes(b"no zip at all")
    with pytest.raises(InputError, match="readable"):
        read_arrays(path)


def test_the_key_follows_the_content() -> None:
    one = {"x": np.zeros((1, 3), np.float32)}
    other = {"x": np.zeros((1, 3), np.float64)}
    assert feeds_key([one]) == feeds_key([dict(one)])
    assert len({feeds_key([one]), feeds_key([other]), feeds_key([one, one])}) == 3


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        ([1, 1, 1, 0, 0], "attention_mask"),  # 0 is padding
        ([0, 0, 0, 1, 1], None),  # 1 is padding
        ([0, 0, 0, 0, 0], None),
    ],
)
def test_a_mask_of_padding_marks_no_tokens(
    mask: list[int], name: str | None, tmp_path: Path
) -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
        g (int64[1, N] ids, int64[1, N] attention_mask) => (float[1, N, 4] y)
            <float[50, 4] table = {TABLE}> { y = Gather(table, ids) }"""
    source = Source(tmp_path, tmp_path / "model.onnx", (tmp_path,))
    maker = SampleMaker.of(ir.from_onnx_text(text.replace("{TABLE}", f"{{{TABLE}}}")), source)
    ids = np.array([[4, 9, 7, 0, 0], [8, 5, 6, 0, 0]])
    np.savez(tmp_path / "s.npz", ids=ids, attention_mask=np.array([mask, mask]))
    found = maker.calibration([tmp_path / "s.npz"], samples=2, sequence_length=5)
    assert found.mask == name
