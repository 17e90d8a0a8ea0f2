"""What a mix of DeepSeek-V3's size costs on many GPUs, computed from its flags: no weight is allocated.

    python examples/mix_671b.py

Three layers of Kimi delta attention to one of latent attention without positions, 256 experts. The table of
docs/scale.md is what this prints.
"""

from configuration_zoo import ZooConfig
from zoo.inspection import reported

LENGTH, SEQUENCES, UTILIZATION = 4096, 4096, 0.4
MIX = {
    **{"vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 60, "num_attention_heads": 128},
    **{"intermediate_size": 18432, "max_position_embeddings": 131072, "position_embedding_type": "none"},
    **{"attention_type": "latent", "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128},
    **{"qk_rope_head_dim": 0, "v_head_dim": 128},
    **{"layer_types": "3*linear_attention, full_attention", "linear_attention_type": "kimi_delta_attention"},
    **{"linear_num_key_heads": 64, "linear_num_value_heads": 64, "linear_key_head_dim": 128},
    **{
        "linear_value_head_dim": 128,
        "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 57,
        "num_experts": 256,
        "num_experts_per_tok": 8,
    },
    **{"n_shared_experts": 1, "moe_intermediate_size": 2048, "scoring_func": "sigmoid"},
    **{"use_score_correction_bias": True, "initializer": {"type": "auto"}},
}


def costs(*counts: int, gpu: str = "h100") -> dict[str, list[float]]:
    """For each number of GPUs what one holds, in GB, with one sequence at a time and checkpointing, and how long
    a step takes. Experts are over 256 ranks; FSDP2 splits what these hold over the groups of 256."""
    tokens = LENGTH * SEQUENCES
    wanted = {"context": LENGTH, "ep": 256, "gpu": gpu, "gpus": 1, "tokens": tokens, "utilization": UTILIZATION}
    report = reported(ZooConfig(**MIX, dtype="bfloat16"), **wanted, optimizer="adamw")
    placed, memory = report["placement"], report["training_memory"]
    # Weights, gradients and AdamW's two moments in float32.
    state = 16 * report["parameters"] / 1e9
    one = report["training_time"]["hours"] * 3600
    rows = {
        "parameters, billion": [report["parameters"] / 1e9 for _ in counts],
        "active per token, billion": [report["active_parameters"] / 1e9 for _ in counts],
        "weights, gradients, AdamW, GB": [state / count for count in counts],
        "layer and table gathered, GB": [placed["gathered_bytes"] / 1e9 for _ in counts],
        "activations, checkpointed, GB": [memory["activations_checkpointed"] / 1e9 for _ in counts],
        "read while loading, GB": [placed["bytes_per_rank"] * 256 / count / 1e9 for count in counts],
        "sequences a GPU and step": [SEQUENCES / count for count in counts],
        "step, seconds": [one / count for count in counts],
        "14.8 trillion tokens, days": [one / count / 86400 * 14.8e12 / tokens for count in counts],
    }
    parts = zip(*(rows[name] for name in list(rows)[2:5]), strict=True)
    return rows | {"memory together, GB": [sum(part) for part in parts]}


def main() -> None:
    for name, values in costs(256, 2048).items():
        print(f"| {name} |", *(f"{value:.1f} |" for value in values))


if __name__ == "__main__":
    main()
