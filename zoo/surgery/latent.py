"""Grouped-query attention → latent attention: all key heads of a layer become the one rotated key, all values the
latent (TransMLA, arXiv 2502.07864).

    k_proj [K · d, D]  ─→  rope key, qk_rope_head_dim = K · d, rotated and normalised in K heads of d
    v_proj [K · v, D]  ─→  latent, kv_lora_rank = K · v, and kv_b_proj hands each head its block of it
    q_proj             ─→  each query reads the block of its own key head, and zeros elsewhere

That is exact to the bit. With a smaller qk_rope_head_dim the key heads are mixed, frequency by frequency
(`rotations.py`), and so many components of each frequency stay rotated; the others lose their rotation and join the
values in the latent, which a smaller kv_lora_rank then cuts by principal components (`latent_reduced.py`).
"""

from typing import Any

from configuration_zoo import ZooConfig
from conversion.engine.rules import Rule

from . import latent_full, latent_reduced, latent_stock
from .operation import (
    APPROXIMATE,
    ARITHMETIC,
    Exactness,
    Example,
    Need,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    bits_of,
    has_own,
)

# What latent attention has no place for; (field, what it may say all the same).
UNSAYABLE = {
    "attention_value_scale": (None, 1, 1.0),
    "value_norm": (False,),
    "attention_k_eq_v": (False,),
    "clip_qkv": (None,),
    "mup_multipliers.key": (None, 1, 1.0),
}
# A query meets zeros in the blocks of other key heads, which change no sum; longer sums are split by the libraries that
# multiply matrices, and then the order of the summands changes.
LONGEST_SUM = 512
ONE_FOR_ALL = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "attention_bias", "attention_out_bias",
    "attention_multiplier", "qk_norm", *UNSAYABLE,
)  # fmt: skip


class Latent(Operation):
    def __init__(self):
        super().__init__(
            "grouped-query → latent attention",
            leads=("attention_type",),
            takes=("kv_lora_rank", "qk_rope_head_dim"),
            methods=("rotated", "real", "plain", "stock"),
        )

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        wanted = fields.get("attention_type")
        return wanted == "latent" or (isinstance(wanted, list) and "latent" in wanted)

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        types = fields.get("attention_type")
        if has_own(config, *ONE_FOR_ALL):
            return []  # the sizes of latent attention are one for all layers here
        named = set(range(config.num_hidden_layers))
        if isinstance(types, list):
            named = {index for index, name in enumerate(types) if name == "latent"}
        return [
            index for index, name in enumerate(config.attention_mixers) if name == "grouped_query" and index in named
        ]

    def examples(self, config: ZooConfig) -> list[Example]:
        if not self.layers(config, {}):
            return []
        full = Request({"attention_type": "latent"}, self.layers(config, {}))
        rows = [Example(full.fields, self.exactness(config, full), "the same cache; a start for more expressive heads")]
        stock = Request(full.fields, full.layers, "stock")
        rows.append(Example(full.fields, self.exactness(config, stock), "for --to youtu or deepseek_v3", "stock"))
        if config.qk_norm is None:
            width = config.head_dim
            rank = max(2, config.num_key_value_heads * (config.head_dim + config.value_width) * 3 // 8 - width)
            small = full.fields | {"kv_lora_rank": rank, "qk_rope_head_dim": width}
            rows.append(Example(small, Exactness(APPROXIMATE), "a smaller cache: calibrate, then heal"))
        return rows

    def is_full(self, config: ZooConfig, request: Request) -> bool:
        sizes = Sizes(config, request)
        return sizes.rope_heads == sizes.kv_heads and sizes.rank == sizes.full_rank

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        if request.method == "stock":
            width = latent_stock.query_width(config)
            exact = config.attention_multiplier is None and width <= 256
            return bits_of(*projected(config)) if exact else Exactness(ARITHMETIC)
        if self.is_full(config, request):
            exact = config.num_key_value_heads * config.head_dim <= LONGEST_SUM
            return bits_of(*projected(config)) if exact else Exactness(ARITHMETIC)
        sizes = Sizes(config, request)
        return Exactness(APPROXIMATE if sizes.rank < sizes.full_rank or sizes.cut else ARITHMETIC)

    def needs(self, config: ZooConfig, request: Request) -> list[Need]:
        exact = request.method == "stock" or self.is_full(config, request)
        return [] if exact else [Need("self_attn")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for a layer that latent attention cannot be, and for sizes that do not fit."""
        for name, neutral in UNSAYABLE.items():
            if getattr(config, name) not in neutral:
                raise SurgeryError(f"{name}={getattr(config, name)!r} has no place in latent attention.")
        if config.num_kv_shared_layers:
            raise SurgeryError(f"num_kv_shared_layers={config.num_kv_shared_layers}: layers share keys and values.")
        if config.qk_norm is not None and config.qk_norm_config["scope"] == "full":
            raise SurgeryError("qk_norm_config.scope='full' normalises all heads together: latent attention cannot.")
        if config.qk_norm_config["bias"]:
            raise SurgeryError("qk_norm_config.bias=True would fill the zeros of a query that reads one key head.")
        if config.position_config["alibi_scaled"]:
            raise SurgeryError("position_config.alibi_scaled=True scales by the width of a key, which would change.")
        if request.method == "stock":
            latent_stock.check(config, request)
        elif not self.is_full(config, request):
            latent_reduced.check(config, request, Sizes(config, request))

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        types = list(config.attention_types)
        for layer in request.layers:
            types[layer] = "latent"
        kinds = {name for name in types if name is not None}
        sizes = Sizes(config, request)
        common = {"attention_type": "latent" if kinds == {"latent"} else types, "v_head_dim": config.value_width}
        if request.method == "stock":
            return common | latent_stock.config(config)
        return common | {
            "kv_lora_rank": sizes.rank,
            "qk_rope_head_dim": sizes.rope_heads * config.head_dim,
            "qk_nope_head_dim": config.head_dim if sizes.rope_heads < sizes.kv_heads else 0,
            "head_dim": config.head_dim,
            "num_key_value_heads": config.num_key_value_heads,
            "attention_multiplier": config.attention_multiplier or config.head_dim**-0.5,
            "mla_config.norm": False,
            "mla_config.rope_heads": sizes.rope_heads,
            "mla_config.query_bias": config.attention_bias,
            "mla_config.scale_by_mscale": False,
        }

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        if request.method == "stock":
            return latent_stock.rules(config, new, request)
        if self.is_full(config, request):
            return latent_full.rules(config, new, request)
        return latent_reduced.rules(config, new, request, statistics)


def projected(config: ZooConfig) -> tuple[int, int]:
    """Rows of the projections of keys and of values, which become one."""
    return config.num_key_value_heads * config.head_dim, config.num_key_value_heads * config.value_width


class Sizes:
    """Key-value heads K, heads of the rope key, rank of the latent and the rank at which nothing is cut."""

    def __init__(self, config: ZooConfig, request: Request):
        self.kv_heads, width = config.num_key_value_heads, config.head_dim
        rope = request.get("qk_rope_head_dim", self.kv_heads * width)
        self.rope_width, self.rope_heads = rope, max(rope // width, 1)
        self.full_rank = self.kv_heads * config.value_width + (self.kv_heads - self.rope_heads) * width
        self.rank = request.get("kv_lora_rank", self.full_rank)
        # Components that lose their rotation: a model without rotary positions has none to lose.
        self.cut = self.rope_heads < self.kv_heads and config.position_embedding_type == "rope"
