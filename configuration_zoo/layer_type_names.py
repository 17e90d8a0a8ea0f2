"""Layer types that an older transformers does not know yet."""

from transformers import configuration_utils

from .vocabulary import COMPRESSED_LAYERS, INDEXED


def register_layer_types() -> None:
    """Adds to transformers' check of layer types those that it has from 5.19 on; newer versions are left alone."""
    for name in ("ALLOWED_ATTN_LAYER_TYPES", "ALLOWED_LAYER_TYPES"):
        words = (INDEXED, *COMPRESSED_LAYERS)
        known = getattr(configuration_utils, name, words)
        if not {*words} <= {*known}:
            setattr(configuration_utils, name, (*known, *(word for word in words if word not in known)))
