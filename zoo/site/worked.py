"""The worked examples of the guides, computed: `{{name}}` in a text is what the function of that name returns."""

from collections.abc import Callable
from functools import cache

import torch

from configuration_zoo import ZooConfig
from description_zoo.advice import published_configs
from description_zoo.advice_rules import RULES
from description_zoo.measure import cache_totals, empty_model, experts_of, measure
from modeling_zoo import ZooForCausalLM

# The shapes of a public estimator of caches (LLMs-from-scratch, chapter 4), bfloat16, one sequence, decimal gigabytes.
ESTIMATED = {
    "vocab_size": 1000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 32768,
}
FIVE_TO_ONE = {"layer_types": "5*sliding_attention, full_attention", "sliding_window": 1024}
LATENT_OR_NOT = ESTIMATED | {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "head_dim": 86,
    "max_position_embeddings": 8192,
}
LATENT = {
    "attention_type": "latent",
    "kv_lora_rank": 1024,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 86,
}
EIGHT = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 1792, "router_aux_loss_coef": 0.01}


def cache_in_gb(**fields: object) -> float:
    """Gigabytes of a full cache of one sequence."""
    config = ZooConfig(**fields)
    return cache_totals(measure(config), config.max_position_embeddings)["bytes"] / 1e9


@cache
def estimated_caches() -> str:
    """Caches of 32 layers of width 4096 at 32,768 tokens."""
    grouped = {"num_key_value_heads": 8}
    found = {
        "multi-head": cache_in_gb(**ESTIMATED),
        "8 key-value heads": cache_in_gb(**ESTIMATED | grouped),
        "multi-head, 5 windows of 1,024 to 1 full": cache_in_gb(**ESTIMATED | FIVE_TO_ONE),
        "both": cache_in_gb(**ESTIMATED | grouped | FIVE_TO_ONE),
    }
    return ", ".join(f"{name} {size:.2f} GB" for name, size in found.items())


@cache
def estimated_latent() -> str:
    """The cache of latent attention beside that of heads, with and without the rotated part of the key."""
    plain, latent = cache_in_gb(**LATENT_OR_NOT), cache_in_gb(**{**LATENT_OR_NOT, "head_dim": None, **LATENT})
    rank, rope = LATENT["kv_lora_rank"], LATENT["qk_rope_head_dim"]
    return (
        f"{plain:.2f} GB of keys and values, {latent * rank / (rank + rope):.2f} GB of latents alone, {latent:.2f} GB"
    )


def estimated_experts() -> str:
    """Parameters of the experts of one layer, in all and for a token."""
    config = ZooConfig(**ESTIMATED | {"hidden_size": 7168, "num_hidden_layers": 1, **EIGHT})
    experts = sum(weight.numel() for part in experts_of(empty_model(config)) for weight in part.parameters())
    return f"{experts / 1e6:.0f} million parameters, {experts / 4e6:.0f} million of them for a token"


def matched_widths() -> str:
    """A gated MLP of 8/3 of the width beside a plain one of four times."""
    sizes = {"vocab_size": 100, "hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12}
    counts = []
    for fields in ({"intermediate_size": 2048}, {"gated_mlp": False, "hidden_act": "gelu", "intermediate_size": 3072}):
        mlp = empty_model(ZooConfig(**sizes, **fields)).model.layers[0].mlp
        counts.append(sum(weight.numel() for weight in mlp.parameters()))
    return f"3 x 768 x 2,048 = {counts[0]:,} and 2 x 768 x 3,072 = {counts[1]:,}"


def z_loss() -> str:
    """ln Z of three logits, and a loss with a coefficient that shows."""
    log_z = torch.tensor([12.0, 8.0, 4.0], dtype=torch.float64).logsumexp(0).item()
    return f"ln Z = {log_z:.3f} and ln² Z = {log_z**2:.2f}"


def z_loss_total() -> str:
    """The sum of a cross-entropy of 2.35 and of a tenth of ln² Z."""
    log_z = torch.tensor([12.0, 8.0, 4.0], dtype=torch.float64).logsumexp(0).item()
    return f"2.35 + 0.1 x {log_z**2:.2f} = {2.35 + 0.1 * log_z**2:.2f}"


def decoded_shapes() -> str:
    """What three decoded tokens leave in the caches of two small models, bfloat16."""
    lines = []
    for name, heads in (("multi-head", 2), ("multi-query", 1)):
        config = ZooConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=heads,
            intermediate_size=16, dtype="bfloat16",
        )  # fmt: skip
        model, cache, steps = ZooForCausalLM(config).to(torch.bfloat16).eval(), None, []
        for token in (1, 2, 3):
            with torch.no_grad():
                cache = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).past_key_values
            steps.append(str([*cache.layers[0].keys.shape]))
        held = cache.layers[0].keys.nbytes + cache.layers[0].values.nbytes
        lines.append(f"{name}: keys `{'`, `'.join(steps)}`, keys and values {held} bytes after three tokens")
    return "; ".join(lines)


# The models that lectures on hyperparameters compare, by their presets.
COMPARED = (
    "transformer-base", "gpt2-xl", "gpt3-175b", "opt-175b", "bloom-176b", "t5-11b-decoder", "t5-v1.1-xxl-decoder",
    "lamda-137b", "palm-540b", "chinchilla-70b", "llama-65b", "llama2-70b", "mistral-7b", "qwen-14b", "yi-34b",
    "deepseek-67b", "gemma-2b", "smollm2-135m",
)  # fmt: skip


def published_ratios() -> str:
    """Ratios of published models, computed from their presets: a table."""
    rules = {rule.topic: rule.value for rule in RULES}
    lines = ["| model | width / layers | feed-forward / width | heads x head_dim / width | vocabulary |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name in COMPARED:
        config = published_configs()[name]
        inner = rules["feed-forward ratio (gated)"](config) or rules["feed-forward ratio (plain)"](config)
        ratios = rules["aspect ratio (width / layers)"](config), inner, rules["heads x head_dim / width"](config)
        words = [f"{ratios[0]:.0f}", *(f"{ratio:.3g}" for ratio in ratios[1:]), f"{config.vocab_size:,}"]
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines)


WORKED: dict[str, Callable[[], str]] = {
    "decoded_shapes": decoded_shapes,
    "estimated_caches": estimated_caches,
    "estimated_experts": estimated_experts,
    "estimated_latent": estimated_latent,
    "matched_widths": matched_widths,
    "published_ratios": published_ratios,
    "z_loss": z_loss,
    "z_loss_total": z_loss_total,
}
