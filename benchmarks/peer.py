"""llama.cpp beside the others: a Llama of transformers as a GGUF file, and its times in an interpreter that has it.

    python -m venv .venv-llama-cpp
    CMAKE_ARGS=-DGGML_NATIVE=ON .venv-llama-cpp/bin/pip install llama-cpp-python

builds the library for this processor; `--llama-cpp .venv-llama-cpp/bin/python` names it.
"""

import json
import subprocess
from pathlib import Path

import torch
from transformers import PreTrainedModel

WORKER = Path(__file__).with_name("peer_worker.py")
NUMBERS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.value_length": "head_dim", "rope.dimension_count": "head_dim", "vocab_size": "vocab_size",
}  # fmt: skip


def check_interpreter(python: str) -> None:
    """Raises SystemExit with one sentence for an interpreter that cannot import llama_cpp."""
    try:
        ran = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"--llama-cpp {python}: there is no such interpreter ({error.strerror}).") from None
    if ran.returncode:
        raise SystemExit(
            f"--llama-cpp {python}: this interpreter has no llama_cpp; CMAKE_ARGS=-DGGML_NATIVE=ON {python} -m pip "
            "install llama-cpp-python builds it."
        )


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """A Llama of transformers as a GGUF file, matrices in the dtype of the model, by gguf-py's writer and names; its
    tokens have numbers for words. Raises SystemExit without gguf."""
    try:
        import gguf
    except ImportError:
        raise SystemExit("--llama-cpp needs gguf to write the model: pip install gguf.") from None
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    for key, name in NUMBERS.items():
        writer.add_uint32(f"llama.{key}", getattr(config, name))
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{token}>" for token in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    wide = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[model.dtype]
    for name, tensor in model.state_dict().items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        if "attn_q" in theirs or "attn_k" in theirs:
            # Its Llama turns neighbours, transformers' the halves of a head.
            heads = config.num_attention_heads if "attn_q" in theirs else config.num_key_value_heads
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        number_type = gguf.GGMLQuantizationType[wide if tensor.dim() > 1 else "F32"]
        writer.add_tensor(theirs, gguf.quants.quantize(tensor.float().numpy(), number_type), raw_dtype=number_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_llama_cpp(python: str, path: Path, request: dict) -> dict:
    """What the worker found, see there; raises SystemExit where it failed, with its last words."""
    ran = subprocess.run([python, str(WORKER), str(path), json.dumps(request)], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"llama.cpp failed: {ran.stderr.strip().splitlines()[-1] if ran.stderr else ran.returncode}")
    return json.loads(ran.stdout.splitlines()[-1])
