"""Models from outside, brought in as onnx-ir graphs."""
