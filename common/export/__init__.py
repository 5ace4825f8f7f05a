"""Networks in other formats: ONNX, OpenVINO, sparse files."""
