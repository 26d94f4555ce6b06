"""Names of an encoder-decoder and its parts, by the conventions of transformers."""

from __future__ import annotations

ENCODER_FILE = "encoder_model.onnx"
DECODER_FILE = "decoder_model.onnx"
DECODER_TOKENS = "decoder_input_ids"
ENCODER_STATES = "encoder_last_hidden_state"
