"""The version of zoo, which every config.json that it writes names."""

__version__ = "0.1.0"
