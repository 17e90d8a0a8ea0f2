"""Hy4 (Tencent 2026): DeepSeek-V3.2's indexed attention with sinks and a gate per channel, over residual streams that
do not mix; shared experts and dense MLPs are not clamped."""

from torch import Tensor, arange

from ..engine.family import Family, Keys, Theirs
from ..engine.permutations import HeadPermutation
from ..engine.rules import Context, Keep, Rule
from .shared_latent import INDEX_FIELDS, V3_FIELDS, V3_FIXED, V3_RULES, listed, restore_listed, tiny_indexed

STREAMS = {"hc_mult": "hc_mult", "hc_eps": "hc_eps", "hc_magnitude": "residual_factors.stream"}
LAYER, HEAD = "model.layers.{i}.", "model.hc_pre.hc_head."
INDEXER, CONNECTION = LAYER + "self_attn.indexer.", LAYER + "hc_pre."


class LastFirst(HeadPermutation):
    """The last channels of a head of the indexer first: those that rotate."""

    def channels(self, head_dim: int, ctx: Context) -> Tensor:
        return arange(head_dim).roll(ctx.size("qk_rope_head_dim"))


def derive(theirs: Theirs) -> Keys:
    return listed(theirs) | {"indexer.norm_eps": theirs.rms_norm_eps}


FAMILY = Family(
    fields=V3_FIELDS | INDEX_FIELDS | STREAMS | {"indexer_types": "indexer_types", "swiglu_limit": "swiglu_limit"},
    fixed=V3_FIXED
    | {
        "attention_sinks": "all", "attn_output_gate": "elementwise", "block_type": "hyper_connection",
        "hc_sinkhorn_iters": 0, "swiglu_config.shared_limit": 0,
    },
    derive=derive,
    restore=restore_listed,
    rules=[
        Keep("model.mtp_layers.{*}"),
        *(Rule(f"{CONNECTION}hc_{x}_layer.hc_{{fn|base|scale}}", f"{LAYER}{x}_hc.{{fn|base|scale}}")
          for x in ("attn", "mlp")),
        # What transformers holds under other names than it writes stands under both.
        *(Rule(f"{LAYER}{theirs}_hc.{{fn|base|scale}}", f"{LAYER}{ours}_hc.{{fn|base|scale}}")
          for theirs, ours in (("attn", "attn"), ("ffn", "mlp"))),
        *(Rule(f"{head}_{{fn|base|scale}}", "model.hc_head.{fn|base|scale}")
          for head in (HEAD + "hc_head", "model.hc_head.hc")),
        *(Rule(f"{LAYER}self_attn.{name}", LAYER + "self_attn.sinks") for name in ("learnable_sink_param", "sinks")),
        *(Rule(f"{LAYER}self_attn.{name}.weight", LAYER + "self_attn.output_gate.g_proj.weight")
          for name in ("linear_gate", "gate_proj")),
        # transformers 5.23 writes every gate's projection under the name that attention's has.
        *(Rule(f"{LAYER}{mlp}.{name}.weight", f"{LAYER}{mlp}.gate_proj.weight")
          for mlp in ("mlp", "mlp.shared_experts") for name in ("gate_proj", "linear_gate")),
        Rule(INDEXER + "wq_b.weight", INDEXER + "wq_b.weight", LastFirst("index_head_dim")),
        Rule(INDEXER + "wk.weight", INDEXER + "wk.weight", LastFirst("index_head_dim")),
        Rule(INDEXER + "k_norm.{w}", INDEXER + "k_norm.{w}", LastFirst("index_head_dim")),
        Rule(LAYER + "mlp.experts.{gate_up_proj|down_proj}", LAYER + "mlp.experts.{gate_up_proj|down_proj}"),
        *V3_RULES,
    ],
    tiny=[
        tiny_indexed(
            num_hidden_layers=4, n_group=1, topk_group=1, swiglu_limit=0.6, hc_magnitude=1.7, hc_mult=3,
            indexer_types=["full", "shared", "full", "shared"], pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        tiny_indexed(
            mlp_layer_types=["sparse", "dense", "sparse"], attention_bias=True, norm_topk_prob=False,
            tie_word_embeddings=True, hc_eps=1e-3, index_topk=50, rms_norm_eps=1e-3, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        ),
    ],
)  # fmt: skip
