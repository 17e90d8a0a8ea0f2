"""The text model of Kimi K3 (Moonshot AI 2026): Kimi Linear with a bounded decay, gates on latent attention, bounded
gated units and latent experts with a norm; every sub-layer attends over the blocks of layers before it."""

from ..engine.family import COMMON_FIELDS, Family
from ..engine.ops import Reshape
from ..engine.published_config import published_config
from ..engine.rules import Keep, Rule
from .kimi_linear import SPLIT_CONVOLUTION
from .shared_common import PREDICTION_LAYERS, tiny
from .shared_experts import MIXTRAL_RULES, QWEN_MOE_RULES
from .shared_kimi import DEFAULTS, buffers, derive, restore
from .shared_latent import RANKS, V3_FIXED
from .shared_linear import ATTENTION, LAYER, MIXER, is_attention, recurrent_rule

FIELDS = {name: ours for name, ours in (COMMON_FIELDS | RANKS).items() if name in DEFAULTS and name != "hidden_act"}
FIELDS |= {
    "dtype": "dtype", "rms_norm_eps": "norm_eps", "num_experts": "num_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts", "moe_intermediate_size": "moe_intermediate_size",
    "moe_renormalize": "norm_topk_prob", "routed_scaling_factor": "routed_scaling_factor", "topk_group": "topk_group",
    "num_expert_group": "n_group", "moe_router_activation_func": "scoring_func",
    "routed_expert_hidden_size": "moe_latent_size", "latent_moe_use_norm": "router.latent_norm",
    "attn_res_block_size": "block_config.attn_res_block_size",
}  # fmt: skip
READS = {"self_attention_res": "attn_res", "mlp_res": "mlp_res"}
EXPERTS = {
    "routed_expert_down_proj": "fc1_latent_proj", "routed_expert_up_proj": "fc2_latent_proj",
    "routed_expert_norm": "latent_norm",
}  # fmt: skip
# A linear map to one number, and a vector.
QUERY = Reshape((1, "hidden_size"), ("hidden_size",))
RECURRENT = {
    "f_a_proj.weight": "a_proj.0.weight", "f_b_proj.weight": "a_proj.1.weight", "g_a_proj.weight": "g_proj.0.weight",
    "g_b_proj.weight": "g_proj.1.weight", "{*}": "{*}",
}  # fmt: skip
DELTA = {"num_heads": 4, "head_dim": 10, "short_conv_kernel_size": 4, "full_attn_layers": [3, 5]}
DELTA |= {"kda_layers": [1, 2, 4], "gate_lower_bound": -5.0, "use_full_rank_gate": True}
TINY = tiny(
    num_hidden_layers=5, num_key_value_heads=6, head_dim=..., kv_lora_rank=20, q_lora_rank=26, qk_nope_head_dim=14,
    qk_rope_head_dim=6, v_head_dim=11, num_experts=10, num_experts_per_token=3, moe_intermediate_size=28,
    num_shared_experts=2, routed_expert_hidden_size=18, attn_res_block_size=2, linear_attn_config=DELTA,
)  # fmt: skip

FAMILY = Family(
    config_class=published_config("kimi_k3_text", **DEFAULTS),
    architecture="KimiLinearForCausalLM",
    fields=FIELDS,
    fixed={name: value for name, value in V3_FIXED.items() if name != "scoring_func"}
    | {"position_embedding_type": "none", "block_type": "attention_residual"},
    derive=derive,
    restore=restore,
    buffers=buffers,
    rules=[
        *PREDICTION_LAYERS,
        # Nothing but the embedding is there for the first mixer to choose among.
        Keep(LAYER + "self_attention_res_{norm|proj}.weight", lambda ctx: ctx.layer == 0),
        *(Rule(f"{LAYER}{theirs}_norm.weight", f"{LAYER}{ours}.norm.weight") for theirs, ours in READS.items()),
        *(Rule(f"{LAYER}{theirs}_proj.weight", f"{LAYER}{ours}.query", QUERY) for theirs, ours in READS.items()),
        Rule("model.output_attn_res_norm.weight", "model.output_res.norm.weight"),
        Rule("model.output_attn_res_proj.weight", "model.output_res.query", QUERY),
        SPLIT_CONVOLUTION,
        *(recurrent_rule(ATTENTION + theirs, MIXER + ours) for theirs, ours in RECURRENT.items()),
        Rule(ATTENTION + "g_proj.weight", ATTENTION + "output_gate.g_proj.weight", where=is_attention),
        *(Rule(f"{LAYER}block_sparse_moe.{theirs}.weight", f"{LAYER}mlp.{ours}.weight")
          for theirs, ours in EXPERTS.items()),
        *MIXTRAL_RULES,
        Rule(f"{LAYER}mlp.{{*}}", f"{LAYER}mlp.{{*}}", where=lambda ctx: ctx.layer_entry("mlp_layer_types") == "dense"),
        Rule(f"{LAYER}block_sparse_moe.{{*}}", f"{LAYER}mlp.{{*}}"),
        *QWEN_MOE_RULES,
    ],
    tiny=[
        TINY,
        TINY | {"attn_res_block_size": 3, "moe_renormalize": False, "latent_moe_use_norm": False, "q_lora_rank": None,
                "routed_expert_hidden_size": None, "mla_use_output_gate": False, "activation_situ_linear_beta": None,
                "linear_attn_config": DELTA | {"use_full_rank_gate": False, "gate_lower_bound": None},
                "num_expert_group": 5, "topk_group": 2, "activation_situ_beta": 0.7, "tie_word_embeddings": True},
    ],
)  # fmt: skip
