"""Backbones from anywhere to one ``backbone.onnx``: by name, checked, at four precisions."""
