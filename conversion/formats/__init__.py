"""How the files of a checkpoint store its numbers: one file a format, which the families know nothing of."""
