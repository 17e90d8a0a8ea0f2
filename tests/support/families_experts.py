"""The sparse layers of transformers' own models, their weights in zoo's layout, and the flags that describe each."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from configuration_zoo import ZooConfig

# All sizes differ, and differ doubled: a transposed or swapped tensor cannot pass.
D, E, K, WIDTH, SHARED, BIG = 40, 12, 3, 24, 56, 64


@dataclass
class Family:
    """A sparse layer of transformers: how to build it, what zoo calls it."""

    model_type: str
    block: str | Callable
    theirs: dict
    flags: dict
    renames: dict = field(default_factory=dict)
    convert: Callable = dict
    # What the original keeps in float32 when the rest is bfloat16.
    float32: str = r"e_score_correction_bias"
    # How the block is called, where it is more than block(x).
    reads_other_input: bool = False

    def build(self):
        """Their module with every parameter and buffer random."""
        config = CONFIG_MAPPING[self.model_type](hidden_size=D, **self.theirs)
        config._experts_implementation = "eager"
        package = self.model_type.removesuffix("_text")
        modeling = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
        block = self.block(modeling, config) if callable(self.block) else getattr(modeling, self.block)(config)
        return randomize(block).eval()

    def state(self, theirs):
        """Their tensors under zoo's names in zoo's layout."""
        state = {}
        for name, tensor in theirs.state_dict().items():
            for pattern, name_here in self.renames.items():
                name = re.sub(pattern, name_here, name)
            state[name] = tensor
        return self.convert(state)

    def config(self, **changes):
        """The zoo config of one such layer."""
        return zoo_config(**(self.flags | changes))


def zoo_config(implementation="eager", **flags):
    defaults = {"num_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": WIDTH}
    shape = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 32}
    return ZooConfig(**(shape | defaults | flags), experts_implementation=implementation)


def randomize(module):
    """Every tensor random; correction biases large enough to change the choice, and exact in bfloat16."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            fresh = torch.randn_like(tensor)
            if re.search(r"correction_bias|expert_bias", name):
                tensor.copy_((0.3 * fresh).bfloat16())
            elif re.search(r"scale$|norm\.weight", name):
                tensor.copy_(1 + 0.2 * fresh)
            else:
                tensor.copy_(fresh * (0.5 if tensor.dim() == 1 else tensor.shape[-1] ** -0.5))
    return module


class Sum(nn.Module):
    """Two branches of their layer that read the same input and are added."""

    def __init__(self, **branches):
        super().__init__()
        for name, branch in branches.items():
            setattr(self, name, branch)

    def forward(self, x):
        return sum(branch(x) for branch in self.children())


class RoutedByAnother(nn.Module):
    """Experts on one input, routed by another."""

    def __init__(self, router, experts):
        super().__init__()
        self.router, self.experts = router, experts

    def forward(self, x, router_input):
        _, weights, indices = self.router(router_input.flatten(0, 1))
        return self.experts(x.flatten(0, 1), indices, weights).view(x.shape)


def with_clamp(modeling, config):
    """A limit that these weights reach; older releases do not read it from the config."""
    block = modeling.GptOssMLP(config)
    block.experts.limit = 1.5
    return block


def deinterleave(state):
    """[E, D, 2I] with gate and up in turn → [E, 2I, D] with the halves one after the other (gpt-oss)."""
    state["experts.gate_up_proj"] = torch.cat(
        [state["experts.gate_up_proj"][..., start::2] for start in (0, 1)], -1
    ).transpose(1, 2)
    bias = state["experts.gate_up_proj_bias"]
    state["experts.gate_up_proj_bias"] = torch.cat([bias[..., 0::2], bias[..., 1::2]], dim=-1)
    state["experts.down_proj"] = state["experts.down_proj"].transpose(1, 2)
    return state


def transpose(state):
    """[E, D, 2I] → [E, 2I, D] (Llama 4)."""
    return {name: tensor.transpose(1, 2) if name.startswith("experts.") else tensor for name, tensor in state.items()}


def from_flat(state):
    """w1, v1, w2 `[E · I, D]` → gate_up_proj, down_proj (DBRX)."""
    w1, v1, w2 = (state.pop(f"experts.mlp.{name}").view(E, WIDTH, D) for name in ("w1", "v1", "w2"))
    return state | {"experts.gate_up_proj": torch.cat([w1, v1], dim=1), "experts.down_proj": w2.transpose(1, 2)}


def without_zero_experts(state):
    """Their gate_up_proj has rows for experts that have no weights (LongCat)."""
    return state | {"experts.gate_up_proj": state["experts.gate_up_proj"][:E]}


def split_shared(state):
    """The fused first projection of the shared MLP into gate and up (GraniteMoeShared)."""
    gate, up = state.pop("shared_experts.input_linear.weight").chunk(2)
    return state | {"shared_experts.gate_proj.weight": gate, "shared_experts.up_proj.weight": up}


def squeeze_bias(state):
    """Correction bias [1, E] → [E] (ERNIE)."""
    return state | {"gate.e_score_correction_bias": state["gate.e_score_correction_bias"].squeeze(0)}


KEEP, CAST = {"router_weights_dtype": "float32"}, {"router_weights_dtype": "activation"}
IN_ACTIVATION = {"router_dtype": "activation", **CAST}
SOFTMAX_RAW = {"norm_topk_prob": False}
SOFTMAX_NORMED = {"norm_topk_prob": True, "norm_topk_eps": 0.0}
BIASED_SIGMOID = {"scoring_func": "sigmoid", "use_score_correction_bias": True}
GROUPED = {"n_group": 4, "topk_group": 2}
V3 = {**BIASED_SIGMOID, "router_dtype": "float32_linear", **GROUPED, "routed_scaling_factor": 2.5, **KEEP}
V3_SHARED = {**V3, "n_shared_experts": 2}

LOCAL = {"num_local_experts": E, "num_experts_per_tok": K, "intermediate_size": WIDTH}
ROUTED = {"num_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": WIDTH, "intermediate_size": BIG}
V3_THEIRS = {
    **{"n_routed_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": WIDTH, "intermediate_size": BIG},
    **{"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "n_shared_experts": 2},
}
TO_SHARED = {"^shared_(expert|mlp)\\.": "shared_experts."}
TO_GATE = {"^router\\.": "gate."}


def normed_and_not(theirs, flags):
    """(their settings, our flags) with renormalisation off and on, where the original leaves the choice."""
    return [
        ({**theirs, "norm_topk_prob": on}, {**flags, **(SOFTMAX_NORMED if on else SOFTMAX_RAW)}) for on in (False, True)
    ]


def cases():
    """name → Family."""
    found = {}

    def case(name, model_type, block, theirs, flags, renames=None, **more):
        found[name] = Family(model_type, block, theirs, flags, renames or {}, **more)

    case("mixtral", "mixtral", "MixtralSparseMoeBlock", LOCAL, {**SOFTMAX_NORMED, **KEEP})
    case(
        "minimax_m2",
        "minimax_m2",
        "MiniMaxM2SparseMoeBlock",
        LOCAL,
        {**BIASED_SIGMOID, "norm_topk_eps": 0.0, **KEEP},
        {"^e_score": "gate.e_score"},
    )
    for name, block, shared in (
        ("qwen2_moe", "Qwen2MoeSparseMoeBlock", True),
        ("qwen3_next", "Qwen3NextSparseMoeBlock", True),
        ("qwen3_moe", "Qwen3MoeSparseMoeBlock", False),
        ("olmoe", "OlmoeSparseMoeBlock", False),
        ("flex_olmo", "FlexOlmoSparseMoeBlock", False),
    ):
        theirs = ROUTED | ({"shared_expert_intermediate_size": SHARED} if shared else {})
        if "olmo" in name:
            theirs = theirs | {"intermediate_size": WIDTH}
        flags = CAST | ({"shared_expert_intermediate_size": SHARED, "shared_expert_gate": True} if shared else {})
        for their_settings, our_flags in normed_and_not(theirs, flags):
            suffix = "_normed" if our_flags["norm_topk_prob"] else ""
            case(name + suffix, name, block, their_settings, our_flags, TO_SHARED)
    case(
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "Qwen3_5MoeSparseMoeBlock",
        {**ROUTED, "shared_expert_intermediate_size": SHARED},
        {**CAST, **SOFTMAX_NORMED, "shared_expert_intermediate_size": SHARED, "shared_expert_gate": True},
        TO_SHARED,
    )
    v2 = {"router_dtype": "float32_linear", **KEEP, **SOFTMAX_RAW, "routed_scaling_factor": 1.7, "n_shared_experts": 2}
    v2_theirs = V3_THEIRS | {"routed_scaling_factor": 1.7, "norm_topk_prob": False, "num_attention_heads": 4}
    case("deepseek_v2", "deepseek_v2", "DeepseekV2Moe", {**v2_theirs, "topk_method": "greedy"}, v2)
    case(
        "deepseek_v2_groups",
        "deepseek_v2",
        "DeepseekV2Moe",
        {**v2_theirs, "topk_method": "group_limited_greedy"},
        {**v2, **GROUPED, "group_score": "max", "group_mask_value": "zero"},
    )
    for name, block in (
        ("deepseek_v3", "DeepseekV3MoE"),
        ("deepseek_v32", "DeepseekV32MoE"),
        ("glm_moe_dsa", "GlmMoeDsaMoE"),
        ("glm4_moe", "Glm4MoeMoE"),
        ("glm4_moe_lite", "Glm4MoeLiteMoE"),
        ("dots1", "Dots1MoE"),
        ("kimi_linear", "KimiLinearMoE"),
    ):
        case(name, name, block, {**V3_THEIRS, "num_local_experts": E}, V3_SHARED)
    case(
        "deepseek_v3_raw",
        "deepseek_v3",
        "DeepseekV3MoE",
        {**V3_THEIRS, "norm_topk_prob": False, "n_group": 1, "topk_group": 1},
        {**V3_SHARED, "norm_topk_prob": False, "n_group": 1, "topk_group": 1},
    )
    case("mimo_v2_flash", "mimo_v2_flash", "MiMoV2FlashMoE", V3_THEIRS, V3)
    exaone = {key: value for key, value in V3_THEIRS.items() if not key.startswith("n_r") and not key.startswith("n_s")}
    case(
        "exaone_moe",
        "exaone_moe",
        "ExaoneMoeSparseMoEBlock",
        {**exaone, "num_experts": E, "num_shared_experts": 2},
        V3_SHARED,
    )
    case(
        "mistral4",
        "mistral4",
        "Mistral4MoE",
        {**V3_THEIRS, "routed_scaling_factor": 1.5},
        {**IN_ACTIVATION, **GROUPED, "group_mask_value": "zero", "routed_scaling_factor": 1.5, "n_shared_experts": 2},
    )
    case(
        "longcat_flash",
        "longcat_flash",
        "LongcatFlashMoE",
        {
            **{"n_routed_experts": E, "zero_expert_num": 5, "moe_topk": K, "expert_ffn_hidden_size": WIDTH},
            **{"routed_scaling_factor": 6.0, "num_layers": 1},
        },
        {
            **{"use_score_correction_bias": True, "norm_topk_prob": False, "zero_expert_num": 5},
            **{"routed_scaling_factor": 6.0, "router_dtype": "float32_linear", **KEEP},
        },
        {"^router\\.classifier\\.": "gate.", **TO_GATE},
        convert=without_zero_experts,
        float32="nothing",
    )
    case(
        "ernie4_5_moe",
        "ernie4_5_moe",
        "Ernie4_5_MoeSparseMoeBlock",
        {
            **{"moe_num_experts": E, "moe_k": K, "moe_intermediate_size": WIDTH, "moe_num_shared_experts": 2},
            **{"use_bias": True, "intermediate_size": BIG},
        },
        {
            **{"use_score_correction_bias": True, "norm_topk_eps": 0.0, "norm_topk_min": 1e-12, "mlp_bias": True},
            **{"router_dtype": "float32_weight", **CAST, "n_shared_experts": 2},
        },
        {"moe_statics\\.": ""},
        convert=squeeze_bias,
        float32=r"^gate\.",
    )
    case(
        "hunyuan_v1_moe",
        "hunyuan_v1_moe",
        "HunYuanMoEV1Moe",
        {"num_experts": E, "moe_topk": K, "intermediate_size": WIDTH},
        {**SOFTMAX_NORMED, "router_dtype": "float32_weight", **KEEP, "shared_expert_intermediate_size": WIDTH},
        {"^gate\\.wg\\.": "gate.", **TO_SHARED},
        float32=r"^gate\.",
    )
    after = {"score_after_topk": True, **CAST}
    case("granitemoe", "granitemoe", "GraniteMoeMoE", LOCAL, after, TO_GATE)
    case(
        "granitemoeshared",
        "granitemoeshared",
        lambda m, config: Sum(moe=m.GraniteMoeSharedMoE(config), shared_mlp=m.GraniteMoeSharedMLP(config)),
        {**LOCAL, "shared_intermediate_size": SHARED},
        {**after, "shared_expert_intermediate_size": SHARED},
        {"^moe\\.": "", **TO_GATE, **TO_SHARED, "output_linear": "down_proj"},
        convert=split_shared,
    )
    case(
        "gpt_oss",
        "gpt_oss",
        with_clamp,
        LOCAL,
        {
            **{"score_after_topk": True, "router_bias": True, **IN_ACTIVATION, "expert_bias": True},
            **{"swiglu_limit": 1.5, "swiglu_alpha": 1.702, "swiglu_up_offset": 1.0},
        },
        TO_GATE,
        convert=deinterleave,
    )
    for power in (1.0, None):
        case(
            "dbrx" if power else "dbrx_raw",
            "dbrx",
            "DbrxFFN",
            {
                "d_model": D,
                "ffn_config": {
                    **{"hidden_size": D, "ffn_hidden_size": WIDTH, "moe_num_experts": E, "moe_top_k": K},
                    "moe_normalize_expert_weights": power,
                },
            },
            {**IN_ACTIVATION, **(SOFTMAX_NORMED if power else SOFTMAX_RAW)},
            {"^router\\.layer\\.": "gate."},
            convert=from_flat,
        )
    case(
        "phimoe",
        "phimoe",
        "PhimoeSparseMoeBlock",
        {**LOCAL, "num_experts_per_tok": 2, "router_jitter_noise": 0.1},
        {**IN_ACTIVATION, "scoring_func": "sparsemixer", "num_experts_per_tok": 2, "sparsemixer_jitter_eps": 0.1},
        TO_GATE,
    )
    for count in (1, 3):
        case(
            f"llama4_top{count}",
            "llama4_text",
            "Llama4TextMoe",
            {**LOCAL, "num_experts_per_tok": count},
            {
                **{"scoring_func": "sigmoid", "num_experts_per_tok": count, "score_after_topk": True, **CAST},
                **{
                    "norm_topk_prob": False,
                    "apply_router_weight_on_input": True,
                    "shared_expert_intermediate_size": WIDTH,
                },
            },
            {**TO_GATE, **TO_SHARED},
            convert=transpose,
        )
    for scoring, normed, strategy in (
        ("softmax", False, "sum"),
        ("softmax", True, "average"),
        ("sigmoid", True, "average"),
        ("sigmoid", False, "sum"),
    ):
        flags = {"score_after_topk": True, "scoring_func": scoring, **CAST, "n_shared_experts": 2}
        if scoring == "sigmoid":
            flags |= {"router_dtype": "activation", **(SOFTMAX_NORMED if normed else SOFTMAX_RAW)}
        case(
            f"cohere2_moe_{scoring}_{strategy}",
            "cohere2_moe",
            "Cohere2MoeSparseMoeBlock",
            {
                **{"num_experts": E, "num_experts_per_tok": K, "intermediate_size": WIDTH, "num_shared_experts": 2},
                **{"expert_selection_fn": scoring, "norm_topk_prob": normed},
                "shared_expert_combination_strategy": strategy,
            },
            {**flags, "shared_expert_combination_strategy": strategy},
        )
    case(
        "afmoe",
        "afmoe",
        "AfmoeSparseMoeBlock",
        {**ROUTED, "num_shared_experts": 2, "route_scale": 1.3},
        {**BIASED_SIGMOID, "routed_scaling_factor": 1.3, **KEEP, "n_shared_experts": 2},
        {"^router\\.gate\\.": "gate.", "^expert_bias": "gate.e_score_correction_bias"},
        float32="nothing",
    )
    case(
        "gemma4",
        "gemma4_text",
        lambda m, config: RoutedByAnother(m.Gemma4TextRouter(config), m.Gemma4TextExperts(config)),
        {
            **{"num_experts": E, "top_k_experts": K, "moe_intermediate_size": WIDTH, "enable_moe_block": True},
            "hidden_activation": "gelu_pytorch_tanh",
        },
        {
            **{**SOFTMAX_NORMED, **KEEP, "router_input_norm": True, "router_input_multiplier": D**-0.5},
            **{"router_per_expert_scale": True, "hidden_act": "gelu_pytorch_tanh", "norm_eps": 1e-6},
        },
        {"^router\\.proj\\.": "gate.", "^router\\.scale": "gate.norm.weight", **TO_GATE},
        reads_other_input=True,
    )
    case(
        "deepseek_v4",
        "deepseek_v4",
        lambda m, config: m.DeepseekV4SparseMoeBlock(config, config.mlp_layer_types.index("moe")),
        {
            **{"n_routed_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": WIDTH},
            **{"routed_scaling_factor": 1.5, "swiglu_limit": 0.5},
        },
        {
            **{"scoring_func": "sqrtsoftplus", "use_score_correction_bias": True, **IN_ACTIVATION},
            **{"routed_scaling_factor": 1.5, "swiglu_limit": 0.5, "n_shared_experts": 1},
        },
    )
    case(
        "nemotron_h",
        "nemotron_h",
        "NemotronHMoE",
        {
            **V3_THEIRS,
            **{"moe_shared_expert_intermediate_size": SHARED, "mlp_bias": True, "mlp_hidden_act": "relu2"},
        },
        {**V3, "gated_mlp": False, "hidden_act": "relu2", "mlp_bias": True, "shared_expert_intermediate_size": SHARED},
    )
    case(
        "nemotron_h_latent",
        "nemotron_h",
        "NemotronHMoE",
        {**found["nemotron_h"].theirs, "moe_latent_size": 16},
        {**found["nemotron_h"].flags, "moe_latent_size": 16},
    )
    for biased in (True, False):
        case(
            "lfm2_moe" if biased else "lfm2_moe_unbiased",
            "lfm2_moe",
            "Lfm2MoeSparseMoeBlock",
            {**ROUTED, "use_expert_bias": biased, "routed_scaling_factor": 1.2, "norm_topk_prob": True},
            {
                **{"scoring_func": "sigmoid", "use_score_correction_bias": biased, "norm_topk_eps": 1e-6},
                **{"routed_scaling_factor": 1.2, **IN_ACTIVATION},
            },
            {"^expert_bias": "gate.e_score_correction_bias"},
            float32="expert_bias",
        )
    case(
        "jamba",
        "jamba",
        "JambaSparseMoeBlock",
        {**ROUTED, "intermediate_size": WIDTH},
        {**SOFTMAX_RAW, **CAST},
        TO_GATE,
    )
    return found


FAMILIES = cases()
