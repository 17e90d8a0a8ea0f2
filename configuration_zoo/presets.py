"""Architectures by name, with where their numbers were published: `ZooConfig.preset("palm-540b")`.

Not shipped with a model. Each entry holds the fields of the paper's table; `parameters` is the published count, None
where the paper counts another model than the decoder here. What the paper leaves open is said in `note`.
"""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

# Models whose config.json is public, as the converter reads it (tests/support/published_presets.py writes the file).
PUBLISHED = Path(__file__).with_name("published.json")

# A gated or plain block, by the era of its paper.
GPT = {
    "norm_type": "layer_norm",
    "norm_eps": 1e-5,
    "position_embedding_type": "learned",
    "gated_mlp": False,
    "hidden_act": "gelu_new",
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
}
PALM = {
    "norm_type": "layer_norm",
    "norm_bias": False,
    "block_type": "parallel",
    "hidden_act": "silu",
    "num_key_value_heads": 1,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "output_z_loss_coef": 1e-4,
    "vocab_size": 256000,
    "max_position_embeddings": 2048,
}
GOPHER = {
    "norm_type": "rms_norm",
    "position_embedding_type": "transformer_xl",
    "gated_mlp": False,
    "hidden_act": "gelu",
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
LLAMA = {"norm_eps": 1e-5, "vocab_size": 32000, "max_position_embeddings": 2048}
LLAMA3 = {
    "norm_eps": 1e-5,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
T5 = {
    "position_embedding_type": "relative",
    "attention_multiplier": 1.0,
    "hidden_act": "gelu_new",
    "head_dim": 64,
    "vocab_size": 32128,
    "max_position_embeddings": 512,
}
# Before version 1.1: plain, and the table is the head too.
T5_2020 = {"gated_mlp": False, "hidden_act": "relu", "tie_word_embeddings": True, "logits_scaling": 1024**0.5}
DROPOUT = {"residual_dropout": 0.1, "attention_dropout": 0.1}
OPT = {**GPT, **DROPOUT, "hidden_act": "relu", "vocab_size": 50272, "max_position_embeddings": 2048}
BLOOM = {
    **GPT,
    "position_embedding_type": "alibi",
    "hidden_act": "gelu_pytorch_tanh",
    "embedding_norm": True,
    "vocab_size": 250880,
    "max_position_embeddings": 2048,
}
MISTRAL = {"sliding_window": 4096, "max_position_embeddings": 8192}
QWEN = {**LLAMA, "norm_eps": 1e-6, "attention_bias": True, "vocab_size": 152064}
YI = {
    **LLAMA,
    "vocab_size": 64000,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
}
DEEPSEEK = {"norm_eps": 1e-6, "vocab_size": 102400, "max_position_embeddings": 4096}


@dataclass(frozen=True)
class Preset:
    """One published architecture: the fields of its config, its source, its parameter count."""

    source: str
    fields: dict
    parameters: float | None = None
    note: str = ""
    # Fields that make a version small enough to run anywhere; everything else stays as it is.
    tiny: dict = field(default_factory=dict)


def sizes(layers: int, width: int, heads: int, **more: Any) -> dict[str, Any]:
    """The columns every paper's table has."""
    return {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, **more}


BROWN = "Brown et al. 2020, Language Models are Few-Shot Learners, table 2.1"
CHOWDHERY = "Chowdhery et al. 2022, PaLM, table 1 and §2"
RADFORD = "Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 2; sizes as released"
TOUVRON = "Touvron et al. 2023, LLaMA, table 2"
GRATTAFIORI = "Grattafiori et al. 2024, The Llama 3 Herd of Models, table 3"
BANDED = {"sparse_attention_stride": 256}
GPT_2 = {**GPT, **DROPOUT, "embedding_dropout": 0.1, "vocab_size": 50257, "max_position_embeddings": 1024}
GPT_3 = {**GPT, "vocab_size": 50257, "max_position_embeddings": 2048, **BANDED}

PRESETS = {
    "transformer-base": Preset(
        "Vaswani et al. 2017, Attention Is All You Need, table 3 (base)",
        sizes(
            6,
            512,
            8,
            intermediate_size=2048,
            norm_type="layer_norm",
            norm_eps=1e-6,
            block_type="post_norm",
            final_norm=False,
            position_embedding_type="sinusoidal",
            gated_mlp=False,
            hidden_act="relu",
            mlp_bias=True,
            vocab_size=37000,
            embedding_multiplier=512**0.5,
            tie_word_embeddings=True,
            residual_dropout=0.1,
            embedding_dropout=0.1,
            max_position_embeddings=512,
        ),
        note="The decoder alone, without cross-attention; the published 65M count encoder and decoder.",
    ),
    "gpt2": Preset(RADFORD, {**GPT_2, **sizes(12, 768, 12)}, 124e6),
    "gpt2-medium": Preset(RADFORD, {**GPT_2, **sizes(24, 1024, 16)}, 355e6),
    "gpt2-large": Preset(RADFORD, {**GPT_2, **sizes(36, 1280, 20)}, 774e6),
    "gpt2-xl": Preset(RADFORD, {**GPT_2, **sizes(48, 1600, 25)}, 1558e6),
    "gpt3-175b": Preset(
        BROWN,
        {**GPT_3, **sizes(96, 12288, 96), "sparse_attention_pattern": ["none", "banded"] * 48},
        175e9,
        "Layers alternate dense and locally banded (§2.1); the width of the band is not published, 256 stands for it.",
        {"sparse_attention_pattern": ["none", "banded"]},
    ),
    "t5-v1.1-xl-decoder": Preset(
        "Raffel et al. 2020, T5, §2.1; Shazeer 2020, GLU Variants; sizes of the T5 v1.1 release",
        {**T5, **sizes(24, 2048, 32, intermediate_size=5120)},
        note="The decoder stack alone, without cross-attention; the published 3B count encoder and decoder.",
    ),
    "t5-v1.1-xxl-decoder": Preset(
        "Raffel et al. 2020, T5, §2.1; Shazeer 2020, GLU Variants; sizes of the T5 v1.1 release",
        {**T5, **sizes(24, 4096, 64, intermediate_size=10240)},
        note="The decoder stack alone, as above; the published 11B count encoder and decoder.",
    ),
    "t5-11b-decoder": Preset(
        "Raffel et al. 2020, T5, §2.1 and §3.7; sizes of the 11B release",
        {**T5, **T5_2020, **DROPOUT, **sizes(24, 1024, 128, head_dim=128, intermediate_size=65536)},
        note="The decoder stack alone, as above; the published 11B count encoder and decoder.",
    ),
    "opt-175b": Preset("Zhang et al. 2022, OPT, table 1", {**OPT, **sizes(96, 12288, 96)}, 175e9),
    "bloom-176b": Preset("BigScience 2022, BLOOM, tables 3 and 5", {**BLOOM, **sizes(70, 14336, 112)}, 176.2e9),
    "gopher-280b": Preset(
        "Rae et al. 2021, Scaling Language Models, table 1 and §3.1", {**GOPHER, **sizes(80, 16384, 128)}, 280e9
    ),
    "chinchilla-70b": Preset(
        "Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, table 4",
        {**GOPHER, **sizes(80, 8192, 64)},
        70e9,
    ),
    "lamda-137b": Preset(
        "Thoppilan et al. 2022, LaMDA, §3",
        sizes(
            64,
            8192,
            128,
            head_dim=128,
            intermediate_size=65536,
            norm_type="layer_norm",
            norm_bias=False,
            position_embedding_type="relative",
            hidden_act="gelu",
            vocab_size=32000,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        ),
        137e9,
        "Relative attention and gated GELU as in T5; the paper does not name the norm.",
    ),
    "palm-8b": Preset(CHOWDHERY, {**PALM, **sizes(32, 4096, 16, intermediate_size=16384)}, 8.63e9),
    "palm-62b": Preset(CHOWDHERY, {**PALM, **sizes(64, 8192, 32, intermediate_size=32768)}, 62.50e9),
    "palm-540b": Preset(CHOWDHERY, {**PALM, **sizes(118, 18432, 48, intermediate_size=73728)}, 540.35e9),
    "llama-7b": Preset(TOUVRON, {**LLAMA, **sizes(32, 4096, 32, intermediate_size=11008)}, 6.7e9),
    "llama-13b": Preset(TOUVRON, {**LLAMA, **sizes(40, 5120, 40, intermediate_size=13824)}, 13.0e9),
    "llama-33b": Preset(TOUVRON, {**LLAMA, **sizes(60, 6656, 52, intermediate_size=17920)}, 32.5e9),
    "llama-65b": Preset(TOUVRON, {**LLAMA, **sizes(80, 8192, 64, intermediate_size=22016)}, 65.2e9),
    "llama2-70b": Preset(
        "Touvron et al. 2023, Llama 2, table 1; inner width of the release",
        {**LLAMA, **sizes(80, 8192, 64, num_key_value_heads=8, intermediate_size=28672)},
        69e9,
    ),
    "mistral-7b": Preset(
        "Jiang et al. 2023, Mistral 7B, table 1",
        {**LLAMA, **sizes(32, 4096, 32, num_key_value_heads=8, intermediate_size=14336), **MISTRAL},
        7.24e9,
    ),
    "qwen-14b": Preset(
        "Bai et al. 2023, Qwen, table 1; widths of the release",
        {**QWEN, **sizes(40, 5120, 40, intermediate_size=13696)},
        14.2e9,
    ),
    "yi-34b": Preset(
        "01.AI 2024, Yi, table 1; inner width of the release",
        {**YI, **sizes(60, 7168, 56, num_key_value_heads=8, intermediate_size=20480)},
        34.4e9,
    ),
    "deepseek-67b": Preset(
        "DeepSeek-AI 2024, DeepSeek LLM, table 2; inner width of the release",
        {**LLAMA, **sizes(95, 8192, 64, num_key_value_heads=8, intermediate_size=22016), **DEEPSEEK},
        67.4e9,
    ),
    "llama3-8b": Preset(GRATTAFIORI, {**LLAMA3, **sizes(32, 4096, 32, intermediate_size=14336)}, 8.03e9),
    "llama3-70b": Preset(GRATTAFIORI, {**LLAMA3, **sizes(80, 8192, 64, intermediate_size=28672)}, 70.6e9),
    "llama3-405b": Preset(GRATTAFIORI, {**LLAMA3, **sizes(126, 16384, 128, intermediate_size=53248)}, 405e9),
    "grok-1": Preset(
        "xAI 2024, the open release of Grok-1 (run.py and README)",
        sizes(
            64,
            6144,
            48,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=32768,
            block_type="sandwich_norm",
            norm_eps=1e-5,
            hidden_act="gelu",
            num_experts=8,
            num_experts_per_tok=2,
            mlp_layer_types=["sparse"] * 64,
            norm_topk_prob=False,
            attn_logit_softcapping=30.0,
            attention_multiplier=0.08838834764831845,
            embedding_multiplier=78.38367176906169,
            logits_scaling=1 / 0.5773502691896257,
            vocab_size=131072,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
        314e9,
        tiny={"num_experts": 4, "mlp_layer_types": ["sparse"] * 2},
    ),
}
# What every tiny version shares; heads keep the ratio of query to key-value heads.
TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "head_dim": 12,
    "intermediate_size": 80,
    "vocab_size": 101,
    "max_position_embeddings": 64,
}


@cache
def presets() -> dict[str, Preset]:
    """All of them by name: of papers' tables, then of public files."""
    return PRESETS | {name: Preset(**entry) for name, entry in json.loads(PUBLISHED.read_text("utf-8")).items()}


def preset(name: str, tiny: bool = False) -> dict:
    """The fields of a preset; raises ValueError with the nearest name, or for the tiny version of a public file, which
    there is none of. `tiny` keeps the concepts, not the sizes."""
    every = presets()
    if name not in every:
        close = get_close_matches(name, every, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "`zoo presets` lists them."
        raise ValueError(f"There is no preset {name!r}. {hint}")
    if tiny and name not in PRESETS:
        raise ValueError(f"preset {name!r} has no tiny version: take it whole, with fewer layers if you like.")
    fields = deepcopy(every[name].fields)
    if tiny:
        heads = fields.get("num_key_value_heads")
        fields |= {**TINY, **PRESETS[name].tiny}
        if heads is not None:
            fields["num_key_value_heads"] = 1 if heads == 1 else 2
    return fields
