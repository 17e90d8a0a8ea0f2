"""Where an implementation rounds: what matters below float32 alone, and then in the last digits."""

from dataclasses import dataclass

from .field_kinds import choice, flag, settings
from .fields_checks import check_choice, for_each_layer, refuse_unless
from .vocabulary import NORM_TYPES, PARALLEL_BLOCKS, PRE_NORM_BLOCKS

ALIBI_DTYPES = ("float32", "bfloat16", "float16")
ROPE_DTYPES = ("activation", "float32_trig", "float32_qk")
ROUTER_DTYPES = ("activation", "float32_scores", "float32_linear", "float32_weight")
ROUTER_WEIGHTS_DTYPES = ("activation", "float32")
PARALLEL_SUM_ORDERS = ("residual_first", "branches_first")
ROUTER_KEYS = ("precision.router", "precision.router_weights")


@dataclass(kw_only=True, repr=False)
class PrecisionFields:
    """Orders of casts and dtypes of intermediate results, as published implementations have them: no architecture.

    A key that is left out is what the concept has by default, as derived from the other fields.
    """

    precision: dict | None = settings(
        "Where this implementation rounds, key by key; a key that is left out is what the concept has by default.",
        norm=choice(
            sorted({cast for norm in NORM_TYPES.values() for cast in norm.casts}),
            needs="norm weight",
            neutral=tuple(norm.casts[0] for norm in NORM_TYPES.values() if norm.casts),
            meaning="Order of casts in a norm: cast_then_scale or scale_then_cast of an RMS norm, native or float32 "
            "of a layer norm. None: cast_then_scale, scale_then_cast with norm_unit_offset; native.",
            source="Llama's published code (cast_then_scale); Gemma's (scale_then_cast)",
        ),
        linear_norm=choice(
            ("cast_then_scale", "float32"),
            meaning="The norm on a recurrence's output is rounded before its weight, or at the end. None: what the "
            "mechanism's paper does.",
            source="Mamba-2's published code (cast_then_scale); Falcon-H1's (float32)",
        ),
        linear_decay=choice(
            ("float32", "activation"),
            meaning="The decay of a recurrence is kept in float32, or rounded to the activations' dtype. None: "
            "float32.",
            source="flash-linear-attention (float32); Ling 3's published code (activation)",
        ),
        linear_float32_parameters=flag(
            None,
            meaning="The convolution, A_log and dt_bias are float32, and computed with, in a model of any dtype.",
            source="Ling 3's published code",
        ),
        rope=choice(
            ROPE_DTYPES,
            needs="rotation",
            neutral=("activation",),
            meaning="Rotation: trigonometry in the activations' dtype, kept in float32, or queries and keys computed "
            "with in float32 too. None: activation.",
            source="the published code of Llama (activation), OLMo (float32_trig) and Cohere (float32_qk)",
        ),
        alibi=choice(
            ALIBI_DTYPES,
            needs="alibi",
            meaning="The dtype in which ALiBi's slope · position is rounded. None: not at all.",
            source="Falcon's published code (bfloat16)",
        ),
        router=choice(
            ROUTER_DTYPES,
            needs="sparse layer",
            meaning="Where a router's float32 starts: nowhere (activation), at the scores, at the linear map, or at "
            "the stored weight. None: float32_scores.",
            source="the published code of gpt-oss (activation), Mixtral (float32_scores), DeepSeek-V3 "
            "(float32_linear) and Ernie 4.5 (float32_weight)",
        ),
        router_weights=choice(
            ROUTER_WEIGHTS_DTYPES,
            needs="sparse layer",
            meaning="The dtype of the weights that the outputs of the experts are multiplied with. None: float32.",
            source="the published code of Qwen3-MoE (activation) and DeepSeek-V3 (float32)",
        ),
        attention_upcast=flag(
            needs="softmax",
            meaning="Scores are products of float32 queries and keys in the plain backend; the fused ones sum in "
            "float32 anyway.",
            source="GPT-Neo's and GPT-J's published code",
        ),
        residual_in_fp32=flag(
            meaning="The residual stream is kept in float32 whatever the dtype of the weights, and rounded to "
            "that dtype before each norm.",
            source="Mamba's published code",
        ),
        embedding_multiplier_in_weight_dtype=flag(
            needs="scaled embedding",
            meaning="The factor embedding_multiplier belongs to the table, in the weight's dtype, and leaves "
            "`inputs_embeds` as they are.",
            source="Gemma's published code",
        ),
        parallel_sum_order=choice(
            PARALLEL_SUM_ORDERS,
            needs="parallel block",
            meaning="What a parallel block adds first: (x + mixer) + mlp, or x + (mixer + mlp). None: residual_first.",
            source="GPT-J's and GPT-NeoX's published code",
        ),
    )

    def resolve_precision(self) -> None:
        norm = NORM_TYPES.get(self.norm_type)
        if norm is not None and norm.casts and self.precision["norm"] is None:
            offset = self.norm_unit_offset and self.norm_elementwise_affine
            scale_first = offset and "scale_then_cast" in norm.casts
            self._fill_precision("norm", "scale_then_cast" if scale_first else norm.casts[0])
        if self.position_embedding_type == "rope":
            self._fill_precision("rope", "activation")
        if "sparse" in self.mlp_layer_types:
            self._fill_precision("router", "float32_scores")
            self._fill_precision("router_weights", "float32")
        if any(block in PARALLEL_BLOCKS for block in self.block_types):
            self._fill_precision("parallel_sum_order", PARALLEL_SUM_ORDERS[0])

    def _fill_precision(self, key: str, value: str) -> None:
        if self.precision[key] is None:
            setattr(self, f"precision.{key}", value)

    @for_each_layer
    def validate_precision(self) -> None:
        check_choice(self, "precision.norm", NORM_TYPES[self.norm_type].casts)
        parallel = any(block in PARALLEL_BLOCKS for block in self.block_types)
        refuse_unless(self, parallel, "a parallel block_type", ("precision.parallel_sum_order",))
        kind = self.position_embedding_type
        refuse_unless(self, kind == "rope", "position_embedding_type='rope'", ("precision.rope",))
        refuse_unless(self, kind == "alibi", "position_embedding_type='alibi'", ("precision.alibi",))
        sparse = "sparse" in self.mlp_layer_types
        refuse_unless(self, sparse, "a 'sparse' layer in mlp_layer_types", ROUTER_KEYS)
        if self.precision["residual_in_fp32"]:
            self._validate_stream()

    def _validate_stream(self):
        other = sorted(set(self.block_types) - set(PRE_NORM_BLOCKS))
        if other or not self.norm_elementwise_affine:
            raise ValueError(
                "precision.residual_in_fp32=True rounds the residual stream where a norm with a weight reads it: it "
                f"needs norm_elementwise_affine=True and a block_type of {list(PRE_NORM_BLOCKS)}, got "
                f"norm_elementwise_affine={self.norm_elementwise_affine}, block_type {other or self.block_type!r}."
            )
        if self.hidden_size_per_layer_input is not None:
            raise ValueError("precision.residual_in_fp32=True cannot be combined with hidden_size_per_layer_input.")
