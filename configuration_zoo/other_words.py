"""What the field calls by other words than the config: each word is answered with the name it has here.

Nothing is taken under two names; a word of these tables is refused like any unknown one, with the answer beside it.
"""

from collections.abc import Iterable


def called(name: str) -> tuple[str, str]:
    return name, f"it is called {name!r}"


LATENT_IS = "latent attention is called 'latent'"
GROUPED_IS = "attention with heads of keys and values is called 'grouped_query'"
DELTA_IS = "the gated delta rule is called 'gated_delta_net'"
SLIDING_IS = "attention in a window is called 'sliding_attention'"
FULL_IS = "attention to all tokens before is called 'full_attention'"
LINEAR_IS = "a recurrence is called 'linear_attention', and linear_attention_type says which"
GATE_IS = "the gate is gated_mlp=True (the default), hidden_act names its activation alone"
# word -> answers, each with the name that it is about: the first whose name is allowed is given.
VALUE_WORDS = {
    "mla": (("latent", LATENT_IS),),
    "multi_head_latent": (("latent", LATENT_IS),),
    "gqa": (("grouped_query", f"{GROUPED_IS}, and num_key_value_heads says how many"),),
    "mha": (("grouped_query", f"{GROUPED_IS}, here with num_key_value_heads = num_attention_heads"),),
    "mqa": (("grouped_query", f"{GROUPED_IS}, here with num_key_value_heads=1"),),
    "gdn": (("gated_delta_net", DELTA_IS), ("linear_attention", LINEAR_IS)),
    "kda": (called("kimi_delta_attention"), ("linear_attention", LINEAR_IS)),
    "gla": (called("gated_linear_attention"), ("linear_attention", LINEAR_IS)),
    "ssd": (called("mamba2"), ("linear_attention", LINEAR_IS)),
    "ssm": (called("mamba2"), ("linear_attention", LINEAR_IS)),
    "mamba": (("linear_attention", LINEAR_IS),),
    "mamba2": (("linear_attention", LINEAR_IS),),
    "recurrent": (("linear_attention", LINEAR_IS),),
    "linear": (("linear_attention", LINEAR_IS),),
    "rglru": (called("rg_lru"), ("linear_attention", LINEAR_IS)),
    "swa": (("sliding_attention", SLIDING_IS),),
    "local": (("sliding_attention", SLIDING_IS),),
    "sliding": (("sliding_attention", SLIDING_IS),),
    "sliding_window": (("sliding_attention", SLIDING_IS),),
    "global": (("full_attention", FULL_IS),),
    "full": (("full_attention", FULL_IS),),
    "attention": (("full_attention", FULL_IS),),
    "moe": (("sparse", "an MLP of experts is called 'sparse'"),),
    "mlp": (("dense", "an MLP without experts is called 'dense'"),),
    "rotary": (("rope", "rotary positions are called 'rope'"),),
    "nope": (("none", "no positions are called 'none'"),),
    "absolute": (("learned", "a table of positions is called 'learned'"),),
    "rmsnorm": (called("rms_norm"),),
    "rms": (called("rms_norm"),),
    "layernorm": (called("layer_norm"),),
    "ln": (called("layer_norm"),),
    "swiglu": (("silu", f"use 'silu': {GATE_IS}"),),
    "geglu": (("gelu", f"use 'gelu': {GATE_IS}"),),
    "reglu": (("relu", f"use 'relu': {GATE_IS}"),),
    "squared_relu": (called("relu2"),),
    "prenorm": (called("pre_norm"),),
    "postnorm": (called("post_norm"),),
}  # fmt: skip
# field -> the words for it.
SAME_FIELD = {
    "vocab_size": ("n_vocab", "vocabulary_size"),
    "hidden_size": ("d_model", "n_embd", "model_dim", "embed_dim", "hidden_dim"),
    "intermediate_size": ("d_ff", "ffn_dim", "n_inner", "ffn_hidden_size", "intermediate_dim", "mlp_dim"),
    "num_hidden_layers": ("n_layers", "n_layer", "num_layers"),
    "num_attention_heads": ("n_heads", "n_head", "num_heads"),
    "num_key_value_heads": ("n_kv_heads", "n_kv_head", "num_kv_heads"),
    "head_dim": ("d_head", "head_size"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "context_length", "seq_length"),
    "hidden_act": ("activation", "activation_function", "hidden_activation"),
    "norm_type": ("normalization", "norm"),
    "tie_word_embeddings": ("tie_embeddings", "tied_embeddings", "weight_tying"),
    "num_experts": ("n_experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("experts_per_token", "num_experts_per_token", "moe_top_k"),
    "attention_bias": ("qkv_bias",),
    "attention_sinks": ("sinks",),
    "final_logit_softcapping": ("logit_softcap", "logit_softcapping"),
    "sliding_window": ("window", "window_size", "attention_window"),
}
# word -> the field that it is about, and the answer.
FIELD_WORDS = {word: (field, f"use {field}") for field, words in SAME_FIELD.items() for word in words} | {
    "mla": ("attention_type", "use attention_type='latent'"),
    "gqa": ("num_key_value_heads", "use num_key_value_heads, a part of num_attention_heads"),
    "mha": ("num_key_value_heads", "use num_key_value_heads, as many as num_attention_heads"),
    "mqa": ("num_key_value_heads", "use num_key_value_heads=1"),
    "gdn": ("linear_attention_type", "use linear_attention_type='gated_delta_net' for layers of layer_types"),
    "swa": ("sliding_window", "use sliding_window, with 'sliding_attention' in layer_types"),
    "moe": ("num_experts", "use num_experts, with 'sparse' in mlp_layer_types"),
    "rotary": ("position_embedding_type", "use position_embedding_type='rope', with rope_parameters"),
    "rope": ("position_embedding_type", "use position_embedding_type='rope', with rope_parameters"),
    "alibi": ("position_embedding_type", "use position_embedding_type='alibi'"),
    "nope": ("position_embedding_type", "use position_embedding_type='none', or no_rope_layers"),
    "rmsnorm": ("norm_type", "use norm_type='rms_norm'"),
    "layernorm": ("norm_type", "use norm_type='layer_norm'"),
    "swiglu": ("hidden_act", "use hidden_act='silu' with gated_mlp=True"),
    "geglu": ("hidden_act", "use hidden_act='gelu' with gated_mlp=True"),
    "parallel_residual": ("block_type", "use block_type='parallel'"),
    "use_parallel_residual": ("block_type", "use block_type='parallel'"),
    "dropout": ("residual_dropout", "use residual_dropout, attention_dropout or embedding_dropout"),
}


def answer(word: str, known: Iterable[str]) -> str | None:
    """What to say to a word that is none of `known` names (of fields, or of values that a field takes)."""
    known, word = {*known}, word.lower().replace("-", "_")
    fields = [FIELD_WORDS[word]] if word in FIELD_WORDS else []
    return next((says for name, says in (*VALUE_WORDS.get(word, ()), *fields) if name in known), None)
