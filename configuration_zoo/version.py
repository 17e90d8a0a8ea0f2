"""The version of zoo, which every config.json that it writes names, and the oldest transformers that runs it."""

__version__ = "0.1.0"
TRANSFORMERS = "5.17"
