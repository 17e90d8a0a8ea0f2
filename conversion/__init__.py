"""Checkpoints in and out: one file per foreign family, one engine for both directions."""
