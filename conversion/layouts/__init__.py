"""How publishers lay out the files of a model: one file a layout beside the one that transformers writes."""
