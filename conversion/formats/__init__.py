"""How tensors are stored where they are not plain numbers."""
