"""zoo against transformers: the same converted weights, one process, alternately."""
