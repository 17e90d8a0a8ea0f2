"""Folders and files: safetensors in and out, what lies beside the weights, where a source is, what a target is."""
