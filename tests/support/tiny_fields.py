"""Fields of tiny models that tests of decoding share: odd sizes, mutually different."""

WIDTHS = {"hidden_size": 36, "intermediate_size": 28, "num_attention_heads": 6}
GROUPED = {"num_key_value_heads": 2, "head_dim": 10}
LATENT = {
    "attention_type": "latent", "kv_lora_rank": 14, "q_lora_rank": 18, "qk_nope_head_dim": 8, "qk_rope_head_dim": 6,
    "v_head_dim": 10,
}  # fmt: skip
