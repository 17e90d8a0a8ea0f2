"""Layer types that an older transformers does not know yet."""

from transformers import configuration_utils

from .vocabulary import INDEXED


def register_layer_types() -> None:
    """Adds to transformers' check of layer types the one that it has from 5.19 on; newer versions are left alone."""
    for name in ("ALLOWED_ATTN_LAYER_TYPES", "ALLOWED_LAYER_TYPES"):
        known = getattr(configuration_utils, name, (INDEXED,))
        if INDEXED not in known:
            setattr(configuration_utils, name, (*known, INDEXED))
