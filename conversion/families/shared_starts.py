"""Initial weights of families whose classes draw some matrices in a way of their own."""

from math import sqrt

from ..engine.family import Keys, Theirs


def depth_scaled_attention(theirs: Theirs) -> Keys:
    """initializer_range / sqrt(2 · layers) for the output of attention alone (nanochat)."""
    return {"initializer.by_name": {"o_proj": theirs.initializer_range / sqrt(2 * theirs.num_hidden_layers)}}


def griffin_start(theirs: Theirs) -> Keys:
    """1 / sqrt(D) for what reads the residual stream, sqrt(final_w_init_variance_scale / D) for what writes to it, and
    sqrt(w_init_variance_scale / conv1d_width) for everything else but the gates (RecurrentGemma)."""
    plain = sqrt(theirs.w_init_variance_scale / theirs.conv1d_width)
    gate = sqrt(theirs.w_init_variance_scale / (theirs.lru_width // theirs.num_attention_heads))
    by_name = dict.fromkeys(("q_proj", "k_proj", "v_proj", "in_proj", "g_proj"), theirs.hidden_size**-0.5)
    by_name |= dict.fromkeys(("gate_proj", "up_proj", "down_proj", "conv1d"), plain)
    by_name |= {"input_gate": gate, "recurrence_gate": gate}
    if theirs.lru_width == theirs.hidden_size:
        by_name["o_proj"] = sqrt(theirs.final_w_init_variance_scale / theirs.hidden_size)
    return {"initializer.embedding_range": plain, "initializer.by_name": by_name}
