"""Emu3 (Wang et al. 2024), the language model: Llama with dropout on its branches; the image tokenizer is kept for
converting back."""

from ..engine.family import Family, Keys, Theirs, restore_rope, rope
from ..engine.rules import Keep
from .shared_common import LLAMA_FIELDS, LLAMA_RULES


def derive(theirs: Theirs) -> Keys:
    biases = {name: getattr(theirs, name) for name in ("attention_bias", "mlp_bias")}
    return {"rope_parameters": rope(theirs), "residual_dropout": theirs.attention_dropout} | biases


FAMILY = Family(
    fields=LLAMA_FIELDS,
    derive=derive,
    restore=lambda ours: {"rope_parameters": restore_rope(ours)},
    section="text_config",
    reads="emu3_text_model",
    oracle="Emu3ForCausalLM",
    prefixes={"text_model.model.": "model.", "text_model.lm_head.": "lm_head."},
    rules=[Keep("vqmodel.{*}"), *LLAMA_RULES],
)
