"""GGUF files of tiny models, by gguf-py's writer and its table of names: as llama.cpp's converter writes them."""

import re

import gguf
import numpy as np
import torch

NUMBERS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window", "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size", "expert_used_count": "num_experts_per_tok",
}  # fmt: skip
REALS = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
SPLIT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)(\.weight)")


def write_gguf(path, architecture, config, tensors, kind="F32", extra=None, further=None, tokens=None):
    """Tensors by transformers' names, matrices as `kind`; -> {transformers' name: the numbers that are stored}."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, name in NUMBERS.items():
        if isinstance(getattr(config, name, None), int):
            writer.add_uint32(f"{architecture}.{key}", getattr(config, name))
    for key, name in REALS.items():
        if getattr(config, name, None) is not None:
            writer.add_float32(f"{architecture}.{key}", getattr(config, name))
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if experts:
        writer.add_uint32(f"{architecture}.expert_count", experts)
    theta = config.rope_parameters.get("rope_theta") or config.rope_parameters["full_attention"]["rope_theta"]
    writer.add_float32(f"{architecture}.rope.freq_base", theta)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens["vocabulary"])
        writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens["vocabulary"]))
        writer.add_token_merges(tokens["merges"])
        writer.add_eos_token_id(0)
    for key, value in (extra or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{architecture}.{key}", value)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    stored = {}
    for ours, theirs, tensor in _stacked(tensors, names):
        if architecture == "llama" and re.search(r"attn_[qk]\.", theirs):
            heads = config.num_attention_heads if "attn_q" in theirs else config.num_key_value_heads
            tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        if architecture.startswith("gemma") and theirs.endswith("norm.weight"):
            tensor = tensor + 1
        number_type = gguf.GGMLQuantizationType[kind if tensor.dim() > 1 and "norm" not in theirs else "F32"]
        data = gguf.quants.quantize(tensor.numpy(), number_type)
        stored[ours] = torch.from_numpy(gguf.quants.dequantize(data, number_type).copy())
        writer.add_tensor(theirs, data, raw_dtype=number_type)
    for name, tensor in (further or {}).items():
        writer.add_tensor(name, np.asarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _stacked(tensors, names):
    """(transformers' name, GGUF's name, tensor), the experts of a layer in one."""
    stacks = {}
    for name, tensor in tensors.items():
        found = SPLIT.fullmatch(name)
        if found:
            stacks.setdefault(f"{found[1]}.{found[3]}{found[4]}", {})[int(found[2])] = tensor
        else:
            yield name, names.get_name(name, try_suffixes=(".weight", ".bias")), tensor
    for name, stack in stacks.items():
        yield name, names.get_name(name, try_suffixes=(".weight",)), torch.stack([stack[i] for i in sorted(stack)])
