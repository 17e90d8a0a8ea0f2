"""Baichuan 7B and 13B (Baichuan 2023): Llama with queries, keys and values in one tensor; the larger one has ALiBi
instead of a rotation."""

from ..engine.family import Family, Keys, Ours, Theirs
from ..engine.published_config import published_config
from ..engine.rules import Rule, Split
from ..errors import ConversionError
from .shared_common import LLAMA_FIELDS, LLAMA_RULES, tiny
from .shared_gpt import K, Q, V

NOT_THEIRS = ("num_key_value_heads", "head_dim", "max_position_embeddings", "attention_dropout")
# Of Baichuan 2, by which code that runs both tells them apart; the config does not say that its head is another.
SECOND_VOCABULARY = 125696


def derive(theirs: Theirs) -> Keys:
    if theirs.vocab_size == SECOND_VOCABULARY:
        raise ConversionError(f"vocab_size={SECOND_VOCABULARY} is Baichuan 2's, whose head normalises its rows.")
    if theirs.max_position_embeddings is None:
        return {"position_embedding_type": "alibi", "max_position_embeddings": theirs.model_max_length}
    table = {"rope_type": "default", "rope_theta": theirs.rope_theta}
    return {"rope_parameters": table, "max_position_embeddings": theirs.max_position_embeddings}


def restore(ours: Ours) -> Keys:
    length, alibi = ours.max_position_embeddings, ours.position_embedding_type == "alibi"
    if alibi:
        return {"max_position_embeddings": None, "model_max_length": length}
    return {"max_position_embeddings": length, "rope_theta": ours.rope_parameters["rope_theta"]}


TINY = tiny(num_key_value_heads=..., head_dim=..., max_position_embeddings=...)
FAMILY = Family(
    config_class=published_config(
        "baichuan", vocab_size=64000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, hidden_act="silu", max_position_embeddings=None, model_max_length=4096,
        initializer_range=0.02, rms_norm_eps=1e-6, use_cache=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False, rope_theta=10000.0,
    ),
    architecture="BaichuanForCausalLM",
    fields={name: ours for name, ours in LLAMA_FIELDS.items() if name not in NOT_THEIRS},
    derive=derive,
    restore=restore,
    rules=[Rule("model.layers.{i}.self_attn.W_pack.{w}", [Q, K, V], Split("q", "k", "v")), *LLAMA_RULES],
    tiny=[
        TINY | {"max_position_embeddings": 64},
        TINY | {"model_max_length": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    ],
)  # fmt: skip
