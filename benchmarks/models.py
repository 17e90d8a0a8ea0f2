"""The models that are measured: head shapes as published, few layers, narrow elsewhere; and both classes of each.

A model is written to a folder by transformers' own class and read back by both sides, zoo's through `conversion.load`.
"""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import conversion

LONG = 2**20
COMMON = {
    "vocab_size": 512, "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 1,
    "max_position_embeddings": LONG, "tie_word_embeddings": False, "pad_token_id": None, "eos_token_id": None,
    "bos_token_id": None,
}  # fmt: skip
GROUPED = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
# DeepSeek-V3 (arXiv 2412.19437); 64 of its 128 heads. V3.2 (arXiv 2512.02556) has all of them and an indexer.
LATENT = {
    "num_attention_heads": 64, "num_key_value_heads": 64, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "rope_interleave": True,
}  # fmt: skip
# A channel mixer of no weight beside the attention that is measured.
FEW_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
DEEPSEEK = FEW_EXPERTS | {
    "n_routed_experts": 8, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 0,
}  # fmt: skip
INDEXED = LATENT | {
    "num_attention_heads": 128, "num_key_value_heads": 128, "index_topk": 2048, "index_n_heads": 64,
    "index_head_dim": 128,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"], "num_hidden_layers": 4, "num_experts": 8,
    "shared_expert_intermediate_size": 128,
}  # fmt: skip
EXPERTS = GROUPED | {
    "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 256, "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}  # fmt: skip
# name -> (transformers' model_type, its fields beyond COMMON, what it stands for)
MODELS = {
    "gqa": ("llama", GROUPED, "grouped queries, 32 heads over 8 of 128"),
    "sliding": ("mistral", GROUPED | {"sliding_window": 1024}, "the same in a window of 1024"),
    "mla": ("deepseek_v3", LATENT | DEEPSEEK, "latent attention, 64 heads of DeepSeek-V3"),
    "dsa": ("deepseek_v32", INDEXED | DEEPSEEK, "sparse attention of DeepSeek-V3.2, 128 heads, top 2048"),
    "gdn": ("qwen3_next", DELTA | FEW_EXPERTS, "gated delta rule of Qwen3-Next, three layers and one of attention"),
    "moe": ("qwen3_moe", EXPERTS, "64 experts, 8 per token"),
}
# Every number small: what the tests run.
TINY = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16,
}  # fmt: skip
TINY_LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}  # fmt: skip
TINY_MODELS = {
    "gqa": {},
    "sliding": {"sliding_window": 8},
    "mla": TINY_LATENT,
    "dsa": TINY_LATENT | {"index_topk": 8, "index_n_heads": 2, "index_head_dim": 16},
    "gdn": {
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}  # fmt: skip


def their_config(name: str, tiny: bool = False, **changes):
    """transformers' config of a model in MODELS; `changes` are fields of it."""
    model_type, fields, _ = MODELS[name]
    arguments = {**COMMON, **fields, **(TINY | TINY_MODELS[name] if tiny else {}), **changes}
    if "qk_nope_head_dim" in arguments:
        arguments.pop("head_dim", None)
    return CONFIG_MAPPING[model_type](**arguments)


def pair(name: str, dtype=torch.bfloat16, device: str = "cpu", tiny: bool = False, **changes) -> dict:
    """{"transformers": its own class, "zoo": ZooForCausalLM}, on one set of random weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(their_config(name, tiny, **changes), dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        models = {
            "transformers": AutoModelForCausalLM.from_pretrained(folder, dtype=dtype),
            "zoo": conversion.load(Path(folder), dtype=dtype),
        }
    return {side: model.to(device).eval() for side, model in models.items()}
