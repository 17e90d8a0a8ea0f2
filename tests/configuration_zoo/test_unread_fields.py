"""Nothing is silently ignored: a value that is accepted changes weights, logits, loss or cache, or it is refused.

Every field is set, one at a time, on models that have and on models that lack what it is about; the values come from
what the field says of itself. What no computation could show is listed with the reason.
"""

import random
import re
from functools import cached_property

import pytest
import torch
from combinations import ROWS, SIZES
from huggingface_hub.errors import StrictDataclassError
from random_fields import KINDS, candidates, draw_value
from random_models import randomize

from configuration_zoo import ZooConfig
from configuration_zoo.field_kinds import Items
from configuration_zoo.field_needs import NEEDS
from configuration_zoo.field_settings import described
from configuration_zoo.fields_linear import LINEAR_FIELDS, LINEAR_MECHANISMS
from description_zoo.flags import flags
from modeling_zoo import ZooForCausalLM

# Not one concept but many, or what tools and the tokenizer read.
WHOLE_MODEL = {
    *SIZES, "block_type", "bos_token_id", "eos_token_id", "layer_types", "loss_chunk_size", "pad_token_id",
    "source_config", "source_extras", "use_cache",
}  # fmt: skip
# A bound that these tokens need not reach, or a count that a given width makes unnecessary.
UNSEEN = {
    "precision.alibi", "clip_qkv", "router.group_mask_value", "initializer.cutoff", "n_shared_experts",
    "router.norm_topk_min", "swiglu_limit", "linear_attn_config.time_step_floor",
    "linear_attn_config.time_step_limit",
}  # fmt: skip
# It says in words what is so anyway: all layers rotate, nothing is scaled, the mixer computes in float32.
TRUE_ANYWAY = {"precision.linear_norm", "qk_norm_config.layers", "mla_config.scale_by_mscale"}
# The indexer does not select while it warms up, nor with as many keys as there are tokens.
LATER = {"index_topk"}
SAME_FUNCTION = {"swish": "silu", "linear": "none", "gelu": "gelu_python"}

# What a model has for the fields that only mean something with a choice among what others are about.
CHOSEN = (
    {},
    {"num_experts": 4, "num_experts_per_tok": 2},
    {"num_experts": 4, "num_experts_per_tok": 2, "gated_mlp": False},
    {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
    {"layer_types": ["full_attention"] * 3},
    {"position_embedding_type": "none"},
)


def reasons(name):
    """What the refusals of a field ask for, on models with little; None where it is accepted, or refused otherwise."""
    kind = KINDS[name]
    values = [[value] * (kind.count or 3) for value in candidates(kind.entry)] if isinstance(kind, Items) else None
    for chosen in CHOSEN:
        for value in [value for value in values or candidates(kind) if value is not False][:3]:
            try:
                ZooConfig(**{**SIZES, **chosen, name: value})
            except (StrictDataclassError, ValueError) as error:
                own = rf"(?<![\w.]){re.escape(name)}=.*? only means something with (.*): leave it out|$"
                yield re.search(own, str(error))[1]
            else:
                yield None


# What a layer must have is asked of models that lack it, below.
NEEDED = {name: facts["needs"] for name, facts in flags().items()}
BY_MODEL = [name for name, field in described(ZooConfig).items() if field.metadata.get("needs") not in NEEDS]


@pytest.mark.parametrize("name", [name for name in BY_MODEL if name in KINDS and name not in WHOLE_MODEL])
def test_a_field_says_what_it_needs_in_the_words_of_its_refusal(name):
    needs = NEEDED[name]
    assert needs in reasons(name) if needs else set(reasons(name)) <= {None}


LINEAR = ["linear_attention"] * 3
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
STATES = {"linear_num_value_heads": 8, "linear_value_head_dim": 12}
LACKING = {
    **{
        name: {"layer_types": LINEAR, "linear_attention_type": name, **(STATES if "mamba" in name else {})}
        for name in LINEAR_MECHANISMS
    },
    "mixers alone": {"block_type": "mixer_only"},
    "MLPs alone": {"block_type": "mlp_only"},
    "experts alone": {"block_type": "mlp_only", **SPARSE},
    "experts": SPARSE,
    "shared experts": {**SPARSE, "n_shared_experts": 1},
    "recurrences alone": {
        "layer_types": LINEAR, "linear_attention_type": "mamba2", "block_type": "mixer_only", **STATES,
    },
    "side by side": {"layer_types": ["hybrid"] * 3, "linear_attention_type": "mamba2", **STATES},
    "no positions": {"position_embedding_type": "none"},
    "no rotation": {"no_rope_layers": [0, 0, 0]},
    "windows": {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4},
    "no norm weights": {"norm_elementwise_affine": False},
}  # fmt: skip
BASES = LACKING | {
    f"{group} {i}": row for group in ROWS if group != "stray" for i, row in enumerate(ROWS[group]) if row
}
TOKENS = torch.randint(6, 101, (2, 20), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(20) >= torch.tensor([[5], [0]])).long()


class Trace:
    """What a config makes: every part of it that a caller could see, computed when it is asked for."""

    parts = ("weights", "logits", "padded", "steps", "loss", "rounded")

    def __init__(self, fields):
        self.config = ZooConfig(**{**SIZES, **fields})

    @cached_property
    def model(self):
        torch.manual_seed(0)
        model = ZooForCausalLM(self.config).eval()
        # Every number of the scores is seen: the fused kernels have no dropout and no rounding of their own.
        model.set_attn_implementation("eager")
        return model

    @cached_property
    def weights(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    @cached_property
    def logits(self):
        assert self.weights
        torch.manual_seed(0)
        randomize(self.model)
        outputs = self.model(TOKENS)
        return [outputs.logits, outputs.get("router_logits")]

    @cached_property
    def padded(self):
        return self.model(TOKENS, attention_mask=MASK).logits

    @cached_property
    def steps(self):
        outputs = self.model(TOKENS[:, :7])
        cache, found = outputs.past_key_values, [outputs.logits]
        for index in (7, 8, 9):
            found.append(self.model(TOKENS[:, index : index + 1], past_key_values=cache).logits)
        kept = [
            (type(layer).__name__, *(v.shape for v in vars(layer).values() if torch.is_tensor(v)))
            for layer in cache.layers
        ]
        return [*found, kept]

    @cached_property
    def loss(self):
        self.model.train()
        torch.manual_seed(3)
        # What only a gradient asks for is part of it.
        with torch.enable_grad():
            loss = self.model(TOKENS, labels=TOKENS).loss.detach()
        self.model.eval()
        return loss

    @cached_property
    def rounded(self):
        weights = self.model.state_dict()
        model = ZooForCausalLM.from_pretrained(
            None, config=self.config, state_dict=weights, dtype=torch.bfloat16
        ).eval()
        model.set_attn_implementation("eager")
        return [[tensor.dtype for tensor in model.state_dict().values()], model(TOKENS).logits]


def same(one, other):
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.shape == other.shape and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def says_nothing(name, value, before, words):
    """Whether a value is the default put into words: absence, a list of it, the same function, a mechanism's own, the
    one word of layer_types."""
    if value is None or value == before or (value is False and before is None):
        return True
    if isinstance(value, list) and len({*map(str, value)}) == 1 and value[0] in (1, "none", "dense", before):
        return True
    pair = {value, before} if isinstance(value, str) and isinstance(before, (str, type(None))) else set()
    if any(pair == {*names} for names in SAME_FUNCTION.items()) or pair == {"all", *words}:
        return True
    return name in LINEAR_FIELDS and any(value == values.get(name) for values in LINEAR_MECHANISMS.values())


def unread(base, names, rng, values):
    """(field, value) that is accepted on top of `base` and changes nothing."""
    plain, found = Trace(base), []
    for name in names:
        kind, before = KINDS[name], getattr(plain.config.outside_layers(), name)
        tried = candidates(kind) or [draw_value(kind, 3, rng) for _ in range(3)]
        accepted = []
        for value in rng.sample(tried, len(tried)):
            if not says_nothing(name, value, before, plain.config.layer_types) and len(accepted) < values:
                try:
                    accepted.append((value, Trace({**base, name: value})))
                except (StrictDataclassError, ValueError):
                    pass
        with torch.no_grad():
            for value, other in accepted:
                if all(same(getattr(plain, part), getattr(other, part)) for part in Trace.parts):
                    found.append((name, value))
    return found


FIELDS = sorted(set(KINDS) - WHOLE_MODEL - UNSEEN - TRUE_ANYWAY - LATER - {"position_embedding_type"})


@pytest.mark.parametrize("base", LACKING)
def test_a_few_fields_are_read_or_refused(base):
    rng = random.Random(base)
    assert unread(LACKING[base], rng.sample(FIELDS, 8), rng, 1) == []


@pytest.mark.long
@pytest.mark.parametrize("base", BASES)
def test_every_field_is_read_or_refused(base):
    assert unread(BASES[base], FIELDS, random.Random(base), 2) == []


REFUSED = {
    "attention_bias": (LACKING["mamba2"], True),
    "attn_logit_softcapping": (LACKING["mamba"], 4.0),
    "qk_norm": (LACKING["rg_lru"], "rms_norm"),
    "attention_sinks": (LACKING["windows"], "full_attention"),
    "rope_parameters": (LACKING["gated_delta_net"], {"rope_type": "default", "rope_theta": 5.0}),
    "rope_interleave": (LACKING["no rotation"], True),
    "attn_temperature.layers": ({"attn_temperature.scale": 0.3, "attn_temperature.floor_scale": 3}, "no_rope"),
    "attention_type": (LACKING["delta_net"], "latent"),
    "attention_chunk_size": ({**LACKING["windows"], "per_layer_config": {1: {"sliding_window": 7}}}, 3),
    "attention_type of a layer": (
        {"layer_types": [*LINEAR[:2], "full_attention"], "linear_attention_type": "delta_net"},
        ["grouped_query", "latent", "grouped_query"],
    ),
    "initializer_range": ({"initializer": {"type": "fan_in", "embedding_range": 1.0}}, 0.5),
    "hidden_act": (LACKING["mixers alone"], "relu"),
    "mlp_bias": (LACKING["experts"], True),
    "mlp_layer_types": ({**LACKING["mixers alone"], **SPARSE}, ["sparse"] * 3),
    "num_kv_shared_layers": (LACKING["MLPs alone"], 1),
    "linear_key_head_dim": (LACKING["rg_lru"], 4),
    "linear_attn_config.norm_eps": (LACKING["rg_lru"], 1e-3),
    "linear_attn_config.time_step_min": (LACKING["gated_linear_attention"], 0.05),
    "linear_attention_type": ({"layer_types": [*LINEAR[:2], "full_attention"]}, ["mamba", "mamba", "mamba2"]),
    "no_rope_layers": (
        {"layer_types": [*LINEAR[:2], "full_attention"], "linear_attention_type": "delta_net"}, [0, 0, 1],
    ),
    "precision.norm": (LACKING["no norm weights"], "scale_then_cast"),
    "precision.embedding_multiplier_in_weight_dtype": ({}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_layer_reads_is_refused_by_name(name):
    (base, value), name = REFUSED[name], name.partition(" ")[0]
    with pytest.raises((StrictDataclassError, ValueError), match=rf"{name}(\[\d\])?=.*only means something with"):
        ZooConfig(**{**SIZES, **base, name: value})


def test_experts_are_where_an_mlp_is():
    config = ZooConfig(**SIZES, block_type=["mixer_only", "mlp_only", "pre_norm"], **SPARSE)
    assert config.mlp_layer_types == ["dense", "sparse", "sparse"]
