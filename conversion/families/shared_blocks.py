"""What Zamba and Zamba2 share: transformer blocks stored in the layer that uses each first, state space layers around
them."""

from collections.abc import Iterator
from typing import Any

from ..engine.ops import Context
from ..engine.rules import Keep, Rule, Split
from .shared_state_space import LAYER, MIXER, mixer_rules

SHARED, PLAIN = "hybrid", "linear_attention"
HEADS, MLPS = "{q_proj|k_proj|v_proj|o_proj}", "{down_proj|gate_proj|up_proj}"
DECODER = LAYER + "mamba_decoder."


def shared_fields(theirs: Any, shared: int) -> dict[str, Any]:
    """Topology, and heads twice as wide for an input that is twice as wide.

    `shared` blocks take turns over the layers that use one. transformers ties these uses together with the head, or
    neither: then each has a block of its own.
    """
    layer_types, width = list(theirs.layers_block_type), 2 * theirs.hidden_size // theirs.num_attention_heads
    blocks = ["shared_block" if layer_type == SHARED else "mixer_only" for layer_type in layer_types]
    fields = {"layer_types": layer_types, "block_type": blocks, "head_dim": width}
    if SHARED in layer_types:
        fields["num_mem_blocks"] = shared if theirs.tie_word_embeddings else layer_types.count(SHARED)
    return fields | {"attention_multiplier": (width / 2) ** -0.5}


def is_plain(ctx: Context) -> bool:
    """Whether a tensor belongs to a layer without a shared block."""
    return ctx.layer_entry("block_types") == "mixer_only"


def is_shared(ctx: Context) -> bool:
    """Whether a tensor belongs to a layer with a shared block."""
    return ctx.layer_entry("block_types") == "shared_block"


def stored_blocks(config: Any, name: str) -> Iterator[tuple[int, int, int, str]]:
    """(number of a use, its layer, the block's number, where the block is stored) for every use of a block `name`."""
    layers = config.shared_block_layers
    for use, layer in enumerate(layers):
        turn = use % config.num_mem_blocks
        yield use, layer, turn, f"model.layers.{layers[turn]}.{name}."


def block_rules(config: Any, name: str, fused: bool = False) -> list[Rule]:
    """The shared blocks themselves; `fused` where gate and up of their MLPs are one tensor."""
    found = []
    for use, _, turn, theirs in stored_blocks(config, name):
        if use != turn:
            continue
        ours, feed = f"model.shared_blocks.{turn}.", theirs + "feed_forward."
        found += [
            Rule(f"{theirs}self_attn.{HEADS}.{{w}}", f"{ours}self_attn.{HEADS}.{{w}}"),
            Rule(f"{theirs}input_layernorm.{{w}}", f"{ours}attn_norm.{{w}}"),
            Rule(f"{theirs}pre_ff_layernorm.{{w}}", f"{ours}mlp_norm.{{w}}"),
            Rule(f"{feed}{MLPS}.{{w}}", f"{ours}mlp.{MLPS}.{{w}}"),
        ]
        both = [f"{ours}mlp.{x}_proj.{{w}}" for x in ("gate", "up")]
        found[:0] = [Rule(f"{feed}gate_up_proj.{{w}}", both, Split(parts=2))] if fused else []
    return found


def adapter_rules(config: Any, name: str) -> list[Rule]:
    """What each use adds to its block, stored there in a list over all uses."""
    names = {f"self_attn.linear_{x}_adapter_list": f"{x}_proj" for x in "qkv"}
    names["feed_forward.gate_up_proj_adapter_list"] = "gate_up_proj"
    own = [
        Rule(f"{theirs}{a}.{use}.{{n}}.weight", f"model.layers.{layer}.adapters.{b}.{{n}}.weight")
        for use, layer, _, theirs in stored_blocks(config, name)
        for a, b in names.items()
    ]
    # A block of one use alone still has the adapters of others, which nothing reads.
    return [*own, *(Keep(f"{LAYER}{name}.{a}.{{*}}") for a in names)]


def layer_rules(names: dict[str, str] | None = None) -> list[Rule]:
    """The state space layers, with a block before them or without; `names` are further modules of a mixer."""
    return [
        Rule(LAYER + "input_layernorm.{w}", LAYER + "attn_norm.{w}", where=is_plain),
        Rule(DECODER + "input_layernorm.{w}", LAYER + "attn_norm.{w}", where=is_shared),
        *mixer_rules(LAYER + "mamba.", MIXER, names, where=is_plain),
        *mixer_rules(DECODER + "mamba.", MIXER, names, where=is_shared),
        Rule("model.final_layernorm.{w}", "model.norm.{w}"),
    ]
