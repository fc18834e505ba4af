"""What is no torch module, as one: ONNX files, and functions."""
