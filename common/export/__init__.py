"""Networks in other formats (ONNX, OpenVINO, sparse and single files), and what was made for a teacher on its student."""
