"""Llama-Nemotron Super 49B and Ultra 253B (NVIDIA 2025, arXiv 2505.00949): Llama whose layers were searched one by one
(Puzzle, arXiv 2411.19146): other widths, fewer key-value heads, no attention, no MLP."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.published_config import old_rope, published_config, restore_old_rope
from ..errors import ConversionError
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny

HEADS, WIDTH = "num_key_value_heads", "intermediate_size"
KINDS = {True: "pre_norm", False: "mixer_only"}


def parts(block: Keys, theirs: Theirs) -> Keys:
    """What a layer has: its key-value heads, the width of its MLP (two thirds of `ffn_mult`, rounded up to 256s)."""
    attention, ffn = block["attention"], block["ffn"]
    linear = any(part.get("replace_with_linear") or part.get("window_length") for part in (attention, ffn))
    if linear or (attention.get("no_op") and ffn.get("no_op")) or ffn.get("hidden_act", "silu") != theirs.hidden_act:
        raise ConversionError(f"block_configs={block!r}: a layer has attention, an MLP of one kind, or both.")
    found = {} if attention.get("no_op") else {HEADS: theirs.num_attention_heads // attention["n_heads_in_group"]}
    if not ffn.get("no_op"):
        found[WIDTH] = ffn.get(WIDTH) or -(-int(2 * ffn["ffn_mult"] * theirs.hidden_size / 3) // 256) * 256
    return found


def derive(theirs: Theirs) -> Keys:
    layers = [parts(block, theirs) for block in theirs.block_configs or ()]
    if len(layers) != theirs.num_hidden_layers:
        raise ConversionError(f"block_configs has {len(layers)} entries for {theirs.num_hidden_layers} layers.")
    usual = {name: layer[name] for layer in reversed(layers) for name in layer}
    other = {index: dict(layer.items() - usual.items()) for index, layer in enumerate(layers)}
    other = {index: differs for index, differs in other.items() if differs}
    blocks = [KINDS[WIDTH in layer] if HEADS in layer else "mlp_only" for layer in layers]
    types = ["full_attention" if HEADS in layer else "moe" for layer in layers]
    varied = {"per_layer_config": other} if other else {}
    return old_rope(theirs) | usual | varied | {"block_type": blocks, "layer_types": types}


def blocks(*layers: tuple[int | None, float | None]) -> list[Keys]:
    """`block_configs` of (queries of a key-value head, `ffn_mult`), None for none."""
    return [
        {"attention": {"n_heads_in_group": a, "no_op": a is None}, "ffn": {"ffn_mult": b, "no_op": b is None}}
        for a, b in layers
    ]


def restore(ours: Ours) -> Keys:
    layers = []
    for block, layer in zip(ours.block_types, ours.per_layer_config, strict=True):
        group = None if block == "mlp_only" else ours.num_attention_heads // layer.num_key_value_heads
        layers.append((group, None if block == "mixer_only" else layer.intermediate_size * 3 / (2 * ours.hidden_size)))
    return restore_old_rope(ours) | {"block_configs": blocks(*layers)}


TINY = tiny(num_key_value_heads=..., head_dim=..., intermediate_size=...)
FAMILY = Family(
    config_class=published_config(
        "nemotron-nas", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, hidden_act="silu", max_position_embeddings=2048, initializer_range=0.02,
        rms_norm_eps=1e-6, use_cache=True, pad_token_id=None, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        rope_theta=10000.0, rope_scaling=None, attention_bias=False, attention_dropout=0.0, mlp_bias=False,
        block_configs=None,
    ),
    architecture="DeciLMForCausalLM",
    fields={name: ours for name, ours in LLAMA_FIELDS.items() if name not in (HEADS, WIDTH, "head_dim")}
    | {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    derive=derive,
    restore=restore,
    rules=LLAMA_RULES,
    tiny=[
        TINY | {"block_configs": blocks((3, 8.0), (None, 16.0), (6, 5.3), (2, None), (3, 8.0)), "num_hidden_layers": 5},
        TINY | {"block_configs": blocks((3, 8.0), (3, 8.0)), "num_hidden_layers": 2, "tie_word_embeddings": True}
        | {"attention_bias": True, "mlp_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)  # fmt: skip
