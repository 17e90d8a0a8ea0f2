"""transformers' recurrent mixers, tiny, and the same layers in zoo: fields and names of weights."""

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import torch
from random_mixers import WIDTH
from transformers.models.bamba import modeling_bamba as bamba
from transformers.models.falcon_h1 import modeling_falcon_h1 as falcon_h1
from transformers.models.falcon_mamba import modeling_falcon_mamba as falcon_mamba
from transformers.models.glm5_next import modeling_glm5_next as glm5
from transformers.models.jamba import modeling_jamba as jamba
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.lfm2 import modeling_lfm2 as lfm2
from transformers.models.mamba import modeling_mamba as mamba
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.minimax import modeling_minimax as minimax
from transformers.models.nemotron_h import modeling_nemotron_h as nemotron_h
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as olmo
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next
from transformers.models.recurrent_gemma import modeling_recurrent_gemma as recurrent_gemma
from transformers.models.zamba import modeling_zamba as zamba
from transformers.models.zamba2 import modeling_zamba2 as zamba2


def modeling(name):
    """A modeling module of transformers, None where the installed version has none."""
    try:
        return import_module(f"transformers.models.{name}.modeling_{name}")
    except ModuleNotFoundError:
        return None


class Case(NamedTuple):
    """`module(config)` theirs; zoo's `mechanism` with `fields`; `weights(theirs' state dict)` in zoo's names.

    `multi_token`: theirs is right for several tokens over a filled cache. `left_padding`: theirs ignores it exactly.
    """

    module: Callable
    config: object
    mechanism: str
    fields: dict
    weights: Callable
    multi_token: bool = True
    left_padding: bool = True


def renamed(names):
    """Each tensor under the first matching part's new name, the rest as they are called there."""

    def rename(weights):
        changed = {}
        for name, tensor in weights.items():
            for old, new in names.items():
                name = name.replace(old, new)
            changed[name] = tensor
        return changed

    return rename


STATE_SPACE_NAMES = renamed({"out_proj": "o_proj", "norm.weight": "o_norm.weight"})
SCAN_NAMES = renamed({"out_proj": "o_proj", "_layernorm": "_norm"})
DELTA_NAMES = {"forget_gate.": "", "f_a_proj": "a_proj.0", "f_b_proj": "a_proj.1", "f_proj": "a_proj"}
DELTA_NAMES |= {"g_a_proj": "g_proj.0", "g_b_proj": "g_proj.1"}
CONV_NAMES = renamed({"conv.": "conv1d.", "out_proj": "o_proj"})
UNIT_NAMES = renamed(
    {
        "linear_x": "in_proj", "linear_y": "g_proj", "linear_out": "o_proj", "conv_1d": "conv1d",
        "rg_lru.recurrent_param": "recurrent_param", "rg_lru.input_gate_": "input_gate.",
        "rg_lru.recurrent_gate_": "recurrence_gate.",
    }
)  # fmt: skip


def per_key_head(weights, key_heads=2, value_heads=4, key_dim=6, value_dim=5):
    """[q | k | v ... | z ...] and [b ... | a ...] of each key head in turn -> one matrix each."""
    group = value_heads // key_heads
    sizes = [key_dim, key_dim, group * value_dim, group * value_dim]
    mixed = weights["in_proj_qkvz.weight"].view(key_heads, sum(sizes), -1).split(sizes, dim=1)
    gates = weights["in_proj_ba.weight"].view(key_heads, 2 * group, -1).split(group, dim=1)
    names = ("q_proj", "k_proj", "v_proj", "g_proj", "b_proj", "a_proj")
    ours = {f"{name}.weight": part.flatten(0, 1) for name, part in zip(names, (*mixed, *gates), strict=True)}
    ours |= {name: weights[name] for name in ("conv1d.weight", "A_log", "dt_bias")}
    return ours | {"o_norm.weight": weights["norm.weight"], "o_proj.weight": weights["out_proj.weight"]}


def delta_names(weights):
    return {name: x.flatten() if name == "A_log" else x for name, x in renamed(DELTA_NAMES)(weights).items()}


def lightning_names(weights, heads=3, width=8):
    """[q | k | v] of each head in turn -> one matrix each; the buffers are computed."""
    parts = weights["qkv_proj.weight"].view(heads, 3, width, -1).unbind(1)
    ours = {
        f"{name}.weight": part.flatten(0, 1) for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True)
    }
    ours |= {"g_proj.weight": weights["output_gate.weight"], "o_proj.weight": weights["out_proj.weight"]}
    return ours | {"o_norm.weight": weights["norm.weight"]}


def zamba_names(weights):
    """x and z of each channel in turn -> x, then z; parameters of all heads in one row of channels."""
    ours = {name.replace("proj_", "proj."): x for name, x in weights.items() if "_proj_" in name}
    ours |= {name: x.flatten(0, 1) for name, x in weights.items() if name in ("A_log", "D")}
    ours["in_proj.weight"] = weights["in_proj.weight"].unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
    return (
        ours
        | {name: weights[name] for name in ("conv1d.weight", "conv1d.bias")}
        | {"o_proj.weight": weights["out_proj.weight"]}
    )


def config_of(module, name, **fields):
    config = getattr(module, name)
    common = {"hidden_size": WIDTH, "num_hidden_layers": 2, "vocab_size": 11, "pad_token_id": 0}
    return config(**{**common, **fields})


LAYERS = {"layer_types": ["linear_attention", "full_attention"]}
KDA_SIZES = {"linear_num_value_heads": 3, "linear_key_head_dim": 6}
SSD = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 7, "linear_value_head_dim": 10,
}  # fmt: skip
BAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": 10, "mamba_n_groups": 2, "mamba_d_state": 7, "mamba_chunk_size": 8,
    "attn_layer_indices": [1],
}  # fmt: skip
H1 = {
    "mamba_n_heads": 4, "mamba_d_head": 10, "mamba_n_groups": 2, "mamba_d_state": 7, "mamba_chunk_size": 8,
    "mamba_d_ssm": 40, "ssm_in_multiplier": 1.7, "ssm_multipliers": [0.5, 1.5, 0.7, 1.3, 0.9],
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
H1_FIELDS = SSD | {"linear_in_multiplier": 1.7, "linear_section_multipliers": [0.5, 1.5, 0.7, 1.3, 0.9]}
MAMBA = {"linear_value_head_dim": 40, "linear_key_head_dim": 5, "time_step_rank": 3}
LFM = {"layer_types": ["conv", "full_attention"], "num_attention_heads": 2, "num_key_value_heads": 1}


def falcon_h1_mixer(config, layer_idx):
    mixer = falcon_h1.FalconH1Mixer(config, layer_idx)
    mixer.register_buffer("mup_vector", falcon_h1.compute_mup_vector(config), persistent=False)
    return mixer


CASES = {
    "qwen3_next": Case(
        qwen3_next.Qwen3NextGatedDeltaNet,
        config_of(qwen3_next, "Qwen3NextConfig", linear_num_key_heads=2, linear_num_value_heads=4,
                  linear_key_head_dim=6, linear_value_head_dim=5, rms_norm_eps=1e-3, **LAYERS),
        "gated_delta_net",
        {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
         "linear_norm_eps": 1e-3},
        per_key_head,
    ),
    "olmo_hybrid": Case(
        olmo.OlmoHybridGatedDeltaNet,
        config_of(olmo, "OlmoHybridConfig", num_attention_heads=2, linear_num_key_heads=2, linear_num_value_heads=4,
                  linear_key_head_dim=6, linear_value_head_dim=5, linear_conv_kernel_dim=3, **LAYERS),
        "gated_delta_net",
        {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
         "linear_conv_kernel_dim": 3, "linear_allow_neg_eigval": True, "linear_norm_eps": 1e-5},
        renamed({}),
    ),
    "kimi_linear": Case(
        kimi.KimiLinearDeltaAttention,
        config_of(kimi, "KimiLinearConfig", linear_num_heads=3, linear_head_dim=6, **LAYERS),
        "kimi_delta_attention",
        KDA_SIZES | {"linear_decay_rank": 6, "linear_gate_rank": 6, "linear_norm_eps": 1e-5},
        delta_names,
    ),
    "glm5_next": Case(
        glm5.Glm5NextTextLinearAttention,
        config_of(glm5, "Glm5NextTextConfig", linear_num_heads=3, linear_head_dim=6, linear_lower_bound=-3.0),
        "kimi_delta_attention",
        KDA_SIZES | {"linear_decay_rank": 6, "linear_gate_rank": 6, "linear_norm_eps": 1e-5,
                     "linear_decay": "bounded_sigmoid", "linear_lower_bound": -3.0},
        delta_names,
    ),
    "minimax": Case(
        minimax.MiniMaxLightningAttention,
        config_of(minimax, "MiniMaxConfig", num_attention_heads=3, head_dim=8, block_size=8, **LAYERS),
        "lightning_attention",
        {"linear_num_value_heads": 3, "linear_key_head_dim": 8, "linear_norm_eps": 1e-6},
        lightning_names,
    ),
    "mamba2": Case(
        mamba2.Mamba2Mixer,
        config_of(mamba2, "Mamba2Config", num_heads=4, head_dim=10, state_size=7, n_groups=2, chunk_size=8,
                  use_bias=False),
        "mamba2", SSD | {"linear_norm_eps": 1e-5}, STATE_SPACE_NAMES,
    ),
    "bamba": Case(
        bamba.BambaMixer, config_of(bamba, "BambaConfig", mamba_conv_bias=False, **BAMBA), "mamba2",
        SSD | {"linear_conv_bias": False, "linear_norm_eps": 1e-5}, STATE_SPACE_NAMES,
    ),
    "bamba_biases": Case(
        bamba.BambaMixer, config_of(bamba, "BambaConfig", mamba_proj_bias=True, **BAMBA), "mamba2",
        SSD | {"linear_bias": True, "linear_norm_eps": 1e-5}, STATE_SPACE_NAMES, left_padding=False,
    ),
    "zamba2": Case(
        zamba2.Zamba2MambaMixer,
        config_of(zamba2, "Zamba2Config", n_mamba_heads=4, mamba_ngroups=2, mamba_d_state=7, chunk_size=8,
                  num_attention_heads=2, layers_block_type=["mamba", "hybrid"], time_step_min=0.9),
        "mamba2", SSD | {"linear_norm_eps": 1e-5, "time_step_limit": [0.9, None]}, STATE_SPACE_NAMES,
        # Its single steps do not clamp: tests take them apart.
        multi_token=False,
    ),
    "nemotron_h": Case(
        nemotron_h.NemotronHMamba2Mixer,
        config_of(nemotron_h, "NemotronHConfig", mamba_num_heads=4, mamba_head_dim=10, ssm_state_size=7, n_groups=2,
                  chunk_size=8, num_attention_heads=2, num_key_value_heads=1, time_step_min=1e-9,
                  layers_block_type=["mamba", "attention"]),
        "mamba2", SSD | {"linear_norm_eps": 1e-5}, STATE_SPACE_NAMES,
    ),
    "falcon_h1": Case(
        falcon_h1_mixer, config_of(falcon_h1, "FalconH1Config", mamba_rms_norm=False, **H1), "mamba2",
        H1_FIELDS | {"linear_output_norm": "none"}, STATE_SPACE_NAMES,
    ),
    "falcon_h1_norm_first": Case(
        falcon_h1_mixer,
        config_of(falcon_h1, "FalconH1Config", mamba_rms_norm=True, mamba_norm_before_gate=True, **H1),
        "mamba2",
        H1_FIELDS | {"linear_norm_before_gate": True, "linear_norm_eps": 1e-5, "linear_norm_cast": "float32"},
        STATE_SPACE_NAMES,
    ),
    "falcon_h1_gate_first": Case(
        falcon_h1_mixer,
        config_of(falcon_h1, "FalconH1Config", mamba_rms_norm=True, mamba_norm_before_gate=False, **H1),
        "mamba2", H1_FIELDS | {"linear_norm_eps": 1e-5, "linear_norm_cast": "float32"}, STATE_SPACE_NAMES,
    ),
    "jamba": Case(
        jamba.JambaMambaMixer,
        config_of(jamba, "JambaConfig", mamba_d_state=5, mamba_dt_rank=3, attn_layer_period=2, attn_layer_offset=1,
                  num_attention_heads=2, num_key_value_heads=1),
        "mamba", MAMBA | {"linear_step_norm": "rms_norm", "linear_norm_eps": 1e-6}, SCAN_NAMES, multi_token=False,
    ),
    "mamba": Case(
        mamba.MambaMixer, config_of(mamba, "MambaConfig", state_size=5, time_step_rank=3), "mamba", MAMBA, SCAN_NAMES,
        multi_token=False,
    ),
    "zamba": Case(
        zamba.ZambaMambaMixer,
        config_of(zamba, "ZambaConfig", n_mamba_heads=2, mamba_d_state=5, mamba_dt_rank=3, num_attention_heads=2,
                  layers_block_type=["linear_attention", "hybrid"]),
        "mamba",
        MAMBA | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_value_head_dim": 20},
        zamba_names, multi_token=False,
    ),
    "falcon_mamba": Case(
        # Its own initialisation reads norms that do not exist yet.
        lambda config, index: falcon_mamba.FalconMambaMixer(config, index, initialize_mixer_weights=False),
        config_of(falcon_mamba, "FalconMambaConfig", state_size=5, time_step_rank=3, use_conv_bias=False),
        "mamba",
        MAMBA | {"linear_step_norm": "rms_norm_without_weight", "linear_norm_eps": 1e-6, "linear_conv_bias": False},
        SCAN_NAMES, multi_token=False,
    ),
    "recurrent_gemma": Case(
        recurrent_gemma.RecurrentGemmaRecurrentBlock,
        config_of(recurrent_gemma, "RecurrentGemmaConfig", num_attention_heads=4, lru_width=WIDTH),
        "rg_lru", {"linear_num_value_heads": 4, "linear_value_head_dim": 5}, UNIT_NAMES,
        multi_token=False, left_padding=False,
    ),
    "lfm2": Case(
        lfm2.Lfm2ShortConv, config_of(lfm2, "Lfm2Config", conv_bias=False, **LFM), "short_conv", {}, CONV_NAMES,
    ),
}  # fmt: skip
# Not in every supported version of transformers.
if bailing := modeling("bailing_hybrid"):
    BAILING = {"num_attention_heads": 3, "head_dim": 6, **LAYERS}
    CASES |= {
        "bailing_hybrid": Case(
            bailing.BailingHybridDeltaAttention,
            config_of(bailing, "BailingHybridConfig", kda_lower_bound=-2.0, **BAILING),
            "kimi_delta_attention",
            KDA_SIZES | {"linear_decay": "bounded_sigmoid", "linear_lower_bound": -2.0},
            delta_names,
        ),
        "bailing_softplus": Case(
            bailing.BailingHybridDeltaAttention,
            config_of(bailing, "BailingHybridConfig", kda_safe_gate=False, **BAILING),
            "kimi_delta_attention",
            KDA_SIZES,
            delta_names,
        ),
    }
if lfm3 := modeling("lfm3"):
    CASES |= {
        "lfm3": Case(
            lfm3.Lfm3ShortConv, config_of(lfm3, "Lfm3Config", conv_bias=True, conv_L_cache=7, head_dim=10, **LFM),
            "short_conv", {"linear_conv_kernel_dim": 7, "linear_bias": True, "linear_conv_bias": True}, CONV_NAMES,
            left_padding=False,
        ),
    }  # fmt: skip


class Theirs:
    """One call of a module of transformers, whatever it calls its arguments; `cache` is one of its own kind."""

    def __init__(self, case):
        self.module = case.module(case.config, 0).eval()
        self.config, self.positions = case.config, 0

    def cache(self):
        self.positions = 0
        if isinstance(self.module, minimax.MiniMaxLightningAttention):
            return minimax.MiniMaxCache()
        if isinstance(self.module, recurrent_gemma.RecurrentGemmaRecurrentBlock):
            self.module.conv1d_state = None
            return True
        from transformers import DynamicCache

        return DynamicCache(config=self.config)

    def __call__(self, x, cache=None, mask=None):
        module = self.module
        if isinstance(module, recurrent_gemma.RecurrentGemmaRecurrentBlock):
            positions = torch.arange(x.shape[1]).expand(x.shape[:2]) + self.positions
            self.positions += x.shape[1] if cache else 0
            return module(x, positions, None, use_cache=bool(cache))[0]
        if isinstance(module, minimax.MiniMaxLightningAttention):
            return module(x, None, mask, past_key_values=cache)[0]
        name = "past_key_values" if type(module).__name__.endswith("ShortConv") else "cache_params"
        return module(x, attention_mask=mask, **{name: cache})
