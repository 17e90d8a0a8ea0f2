"""Where an implementation rounds: what matters below float32 alone, and then in the last digits."""

from dataclasses import dataclass

from .field_kinds import choice, flag, settings
from .fields_checks import check_choice, for_each_layer, refuse_unless
from .norm_types import NORM_TYPES

ALIBI_DTYPES = ("float32", "bfloat16", "float16")
ROPE_DTYPES = ("activation", "float32_trig", "float32_qk")
ROUTER_DTYPES = ("activation", "float32_scores", "float32_linear", "float32_weight")
ROUTER_WEIGHTS_DTYPES = ("activation", "float32")
PARALLEL_SUM_ORDERS = ("residual_first", "branches_first")
PARALLEL_BLOCKS = ("parallel", "parallel_two_norms")
# Blocks whose mixers and MLPs read the stream through a norm alone.
PRE_NORM_BLOCKS = (
    "pre_norm", "sandwich_norm", *PARALLEL_BLOCKS, "mixer_only", "mlp_only", "shared_block", "shortcut",
)  # fmt: skip
ROUTER_KEYS = ("precision.router", "precision.router_weights")


@dataclass(kw_only=True, repr=False)
class PrecisionFields:
    """Orders of casts and dtypes of intermediate results, as published implementations have them: no architecture.

    A key that is left out is what the concept has by default, as derived from the other fields.
    """

    precision: dict | None = settings(
        # Cast order: RMS norm "cast_then_scale" | "scale_then_cast"; layer norm "native" | "float32".
        norm=choice(
            sorted({cast for norm in NORM_TYPES.values() for cast in norm.casts}),
            needs="norm weight",
            neutral=tuple(norm.casts[0] for norm in NORM_TYPES.values() if norm.casts),
        ),
        # Of the norm on a recurrence's output: rounded before its weight or at the end.
        linear_norm=choice(("cast_then_scale", "float32")),
        # A recurrence's decay is rounded to the activations' dtype or not.
        linear_decay=choice(("float32", "activation")),
        # The convolution, A_log and dt_bias are float32, and computed with, in a model of any dtype (Ling 3).
        linear_float32_parameters=flag(None),
        # Rotation: trig in the activation dtype | trig kept float32 | queries and keys computed with in float32.
        rope=choice(ROPE_DTYPES, needs="rotation", neutral=("activation",)),
        # dtype in which ALiBi's slope · position is rounded (Falcon).
        alibi=choice(ALIBI_DTYPES),
        # Where a router's float32 starts: nowhere, at the scores, at the linear map, at the stored weight.
        router=choice(ROUTER_DTYPES),
        # dtype of the weights the experts' outputs are multiplied with.
        router_weights=choice(ROUTER_WEIGHTS_DTYPES),
        # Scores of float32 queries and keys in the plain backend (GPT-Neo, GPT-J); the fused ones sum in float32.
        attention_upcast=flag(needs="softmax"),
        # The stream is kept in float32 whatever the dtype of the weights, and rounded to it before each norm (Mamba).
        residual_in_fp32=flag(),
        # embedding_multiplier belongs to the table, in the weight's dtype, and skips `inputs_embeds` (Gemma).
        embedding_multiplier_in_weight_dtype=flag(needs="scaled embedding"),
        # What a parallel block adds first, (x + mixer) + mlp or x + (mixer + mlp) (GPT-J, NeoX).
        parallel_sum_order=choice(PARALLEL_SUM_ORDERS),
    )

    def resolve_precision(self):
        norm = NORM_TYPES.get(self.norm_type)
        if norm is not None and norm.casts and self.precision["norm"] is None:
            offset = self.norm_unit_offset and self.norm_elementwise_affine
            scale_first = offset and "scale_then_cast" in norm.casts
            self._fill_precision("norm", "scale_then_cast" if scale_first else norm.casts[0])
        if self.position_embedding_type == "rope":
            self._fill_precision("rope", "activation")
        if "sparse" in (self.mlp_layer_types or ()):
            self._fill_precision("router", "float32_scores")
            self._fill_precision("router_weights", "float32")
        if any(block in PARALLEL_BLOCKS for block in self.block_types):
            self._fill_precision("parallel_sum_order", PARALLEL_SUM_ORDERS[0])

    def _fill_precision(self, key: str, value: str) -> None:
        if self.precision[key] is None:
            setattr(self, f"precision.{key}", value)

    @for_each_layer
    def validate_precision(self):
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
                "precision.residual_in_fp32=True rounds the stream where a norm with a weight reads it: it needs "
                f"norm_elementwise_affine=True and a block_type of {list(PRE_NORM_BLOCKS)}, got "
                f"norm_elementwise_affine={self.norm_elementwise_affine}, block_type {other or self.block_type!r}."
            )
        if self.hidden_size_per_layer_input is not None:
            raise ValueError("precision.residual_in_fp32=True cannot be combined with hidden_size_per_layer_input.")
