"""vLLM's backend for transformers models serves exported folders: greedy tokens equal to transformers'.

Run by `make test-serving`, in an environment of its own.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from random_models import build, randomize, their_class_config

from conversion import convert, family_of
from modeling_zoo import ZooConfig, ZooForCausalLM

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-serving sets it up"),
]
# Its CPU kernels take heads of 32, 64, 80, 96, 112, 128 ... channels only.
SIZES = {
    "vocab_size": 131,
    "hidden_size": 96,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
EXPERTS |= {"mlp_layer_types": ["dense", "sparse", "sparse"]}
# Expanded: keys of 32 + 32, values of 32 channels.
LATENT = {"attention_type": "latent", "kv_lora_rank": 40, "num_key_value_heads": 6, "v_head_dim": 32}
LATENT |= {"qk_nope_head_dim": 32, "qk_rope_head_dim": 32}
# vLLM's own cache of latents; its kernel on a CPU takes 512 + 64 channels.
CACHED_LATENTS = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
MODELS = {
    "dense": {"qk_norm": "rms_norm", "attention_bias": True},
    "norms over all heads": {"qk_norm": "rms_norm", "qk_norm_config.scope": "full"},
    "sliding": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8},
    "sandwich": {"block_type": "sandwich_norm", "norm_unit_offset": True, "embedding_multiplier": 8.0,
                 "attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0, "tie_word_embeddings": True},
    "no positions": {"no_rope_layers": [1, 0, 1], "attn_output_gate": "query", "norm_type": "layer_norm"},
    "scaled logits": {"logits_scaling": 0.25, "embedding_multiplier": 3.0},
    "counted positions": {"position_embedding_type": "learned",
                          "position_config": {"ids_from_mask": True, "offset": 2}},
    "experts": {**EXPERTS, "n_shared_experts": 1},
    "routed": {**EXPERTS, "num_experts": 6, "scoring_func": "sigmoid", "use_score_correction_bias": True, "n_group": 3,
               "topk_group": 2, "routed_scaling_factor": 2.5, "n_shared_experts": 1},
    "latent": {**LATENT, "q_lora_rank": 24},
    "layers that predict further tokens": {"num_mtp_layers": 2},
    "cached latents": {**LATENT, **CACHED_LATENTS, "q_lora_rank": 24},
    "cached latents of whole queries": {**LATENT, **CACHED_LATENTS, "attn_output_gate": "headwise"},
}  # fmt: skip
# Compiled by vLLM as it does without being told otherwise.
COMPILED = ("dense", "experts", "latent")
NEW_TOKENS = 12


@pytest.mark.parametrize(
    ("name", "eager"),
    [*((name, True) for name in MODELS), *((name, False) for name in COMPILED)],
    ids=lambda value: value if isinstance(value, str) else ("compiled", "eager")[value],
)
def test_greedy_tokens_are_transformers_own(name, eager, tmp_path):
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **MODELS[name]}))
    randomize(model)
    model.generation_config.eos_token_id = None
    model.eval().save_pretrained(tmp_path / "folder")
    prompts = [[5, 9, 33, 7, 8, 21], [3, 3, 3, *range(10, 30)], [77, 2]]
    flags, options = MODELS[name], {"enforce_eager": eager}
    cached_latents = flags.get("kv_lora_rank") == CACHED_LATENTS["kv_lora_rank"]
    if cached_latents:
        options["hf_overrides"] = {"head_dim": sum(CACHED_LATENTS.values())}
        # On a processor with AMX vLLM would take kernels that know no float32.
        options["attention_config"] = {"backend": "CPU_MLA"}
    plain_latents = "attention_type" in flags and not cached_latents
    found, said = served(tmp_path / "folder", prompts, options, {"VLLM_MLA_DISABLE": "1"} if plain_latents else {})
    assert ("-> MLAAttention" in said) == cached_latents
    for prompt, tokens in zip(prompts, found, strict=True):
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
        expected = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert tokens == expected, prompt


def served(folder, prompts, options, further=()):
    """Greedy tokens of vLLM for each prompt, and what it said."""
    request = folder.parent / f"{folder.name}.json"
    request.write_text(json.dumps({"prompts": prompts, "new_tokens": NEW_TOKENS, "options": options}))
    # One process: its workers take longer to start than these models to run.
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= dict(further)
    command = [sys.executable, str(SUPPORT / "serving_worker.py"), str(folder), str(request)]
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(request.with_suffix(".answer").read_text()), done.stdout + done.stderr


def has_tiles():
    """Whether the processor multiplies tiles (AMX), which vLLM's CPU kernels of FP8 in blocks are made of."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "amx_tile" in cpuinfo.read_text()


@pytest.mark.skipif(not has_tiles(), reason="vLLM has no kernel for FP8 in blocks on a processor without AMX")
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_fp8_in_blocks_is_served_as_the_numbers_it_stands_for(model_type, tmp_path):
    """vLLM's own classes, of the checkpoint in eight bits and of the same one decoded."""
    family, heads = family_of(model_type), {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 128, "max_position_embeddings": 128}
    model = build(their_class_config(model_type, family, {**family.tiny[0], **sizes, **heads}), family)
    model.bfloat16().save_pretrained(tmp_path / "plain")
    convert(tmp_path / "plain", tmp_path / "fp8", quantize="fp8-block", progress=False)
    convert(tmp_path / "fp8", tmp_path / "decoded", to=model_type, progress=False)
    prompts = [[5, 9, 33, 7, 8, 21], [3, 3, 3, *range(10, 30)], [77, 2]]
    options = {"model_impl": "auto", "dtype": "bfloat16", "enforce_eager": True}
    answers = [served(tmp_path / name, prompts, options)[0] for name in ("fp8", "decoded")]
    assert answers[0] == answers[1]
