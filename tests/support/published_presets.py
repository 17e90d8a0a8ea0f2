"""Presets of published models, made from their config.json: `python tests/support/published_presets.py` writes
`configuration_zoo/published.json`."""

import json
from pathlib import Path

from configuration_zoo import ZooConfig
from configuration_zoo.presets import PUBLISHED
from conversion.engine.config_bridge import import_config
from conversion.formats.schemes import without_scheme

CONFIGS = Path(__file__).parent / "data" / "configs"
# Preset: the file of its config, who published the model, its parameters as its card or report gives them (None where
# that counts more than the text model, or is not given to one percent).
MODELS = {
    "llama3.1-8b": ("llama3.1-8b", "Meta 2024, Llama 3.1 8B", 8.03e9),
    "smollm2-135m": ("mlcpreset-smollm2_135m", "Hugging Face 2024, SmolLM2 135M", 135e6),
    "mixtral-8x7b": ("mixtral-8x7b", "Mistral AI 2023, Mixtral 8x7B", 46.7e9),
    "qwen3-0.6b": ("qwen3-0.6b", "Qwen team 2025, Qwen3 0.6B", 0.6e9),
    "qwen3-8b": ("qwen3-8b", "Qwen team 2025, Qwen3 8B", 8.2e9),
    "qwen3-30b-a3b": ("qwen3-moe-30b-a3b", "Qwen team 2025, Qwen3 30B-A3B", 30.5e9),
    "qwen3-next-80b-a3b": ("maxtext-qwen3-next-80b-a3b", "Qwen team 2025, Qwen3-Next 80B-A3B", 80e9),
    "qwen3.5-27b": ("qwen3.5-27b", "Qwen team 2026, Qwen3.5 27B", 27e9),
    "gemma-2b": ("mlcpreset-gemma_2b", "Gemma team 2024, Gemma 2B", 2.51e9),
    "gemma-2-9b": ("mlcpreset-gemma2_9b", "Gemma team 2024, Gemma 2 9B", 9.24e9),
    "olmo-2-7b": ("mlcpreset-olmo2_7b", "OLMo team 2024, OLMo 2 7B", 7.3e9),
    "aya-23-8b": ("mlcpreset-aya-23", "Cohere 2024, Aya 23 8B", 8.03e9),
    "gemma-3-1b": ("mlcpreset-gemma3_1b_it", "Gemma team 2025, Gemma 3 1B", 1.0e9),
    "gemma-3-4b": ("maxtext-gemma3-4b", "Gemma team 2025, Gemma 3 4B, the text model", None),
    "gemma-3-27b": ("maxtext-gemma3-27b", "Gemma team 2025, Gemma 3 27B, the text model", None),
    "gemma-4-26b-a4b": ("gemma4-26b-a4b", "Gemma team 2026, Gemma 4 26B-A4B, the text model", None),
    "gpt-oss-20b": ("gpt-oss-20b", "OpenAI 2025, gpt-oss-20b", 20.9e9),
    "olmo-3-7b": ("maxtext-olmo3-7b", "OLMo team 2025, OLMo 3 7B", 7.3e9),
    "deepseek-v3": ("deepseek-v3", "DeepSeek-AI 2024, DeepSeek-V3", 671e9),
    "deepseek-v3.2": ("deepseek-v3.2", "DeepSeek-AI 2025, DeepSeek-V3.2", 671e9),
    "kimi-k2": ("kimi-k2", "Moonshot AI 2025, Kimi K2", None),
    "glm-4.5": ("glm-4.5", "Zhipu AI 2025, GLM-4.5", 355e9),
    "glm-5": ("glm-5", "Z.ai 2026, GLM-5", 744e9),
    "llama4-scout": ("llama4-scout", "Meta 2025, Llama 4 Scout, the text model", None),
    "mimo-7b": ("mimo-7b-base", "Xiaomi 2025, MiMo 7B", None),
    "nemotron-h-56b": ("nemotron-h-56b", "NVIDIA 2025, Nemotron-H 56B", None),
}
# Where a file that another program wrote differs from the model: Gemma 3 report (arXiv 2503.19786), §2, global layers
# turn by a base of 1M, and 128K tokens of context; the activation as in the published file of the 1B model.
GEMMA_3 = {"rope_theta": 1e6, "max_position_embeddings": 131072, "hidden_activation": "gelu_pytorch_tanh"}
CORRECTED = {"gemma-3-4b": GEMMA_3, "gemma-3-27b": GEMMA_3}
NOT_ARCHITECTURE = ("source_config", "source_extras", "zoo_version", "transformers_version", "architectures", "dtype")


def config_of(name: str) -> ZooConfig:
    """What the converter makes of the published config.json."""
    raw = json.loads((CONFIGS / f"{MODELS[name][0]}.json").read_text())
    if name in CORRECTED:
        raw["text_config"] |= CORRECTED[name]
    return import_config(without_scheme(raw))


def fields_of(name: str) -> dict:
    """The fields of a preset: what its config.json would have, without where it comes from."""
    written = json.loads(config_of(name).to_json_string())
    return {key: value for key, value in written.items() if key not in (*NOT_ARCHITECTURE, "model_type")}


def text() -> str:
    entries = {
        name: {"source": source, "parameters": parameters, "fields": fields_of(name)}
        for name, (_, source, parameters) in MODELS.items()
    }
    return json.dumps(entries, indent=1) + "\n"


if __name__ == "__main__":
    PUBLISHED.write_text(text(), encoding="utf-8")
