"""One option of another family's config at a time: which values there are, and what becomes of a model that has one.

The options are read from the config class: every annotated field, its kind and what it holds in the family's first
`tiny` variant. Nothing here knows a family by name, except where transformers' own class contradicts itself.
"""

import json
import math
import random
import shutil
import types
import typing
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache

import torch
from checkpoint_checks import LEAKS_PADDING
from random_models import build, is_here
from safetensors.torch import load_file
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from conversion import ConversionError, convert, family_of
from conversion.engine.their_config import class_of
from modeling_zoo import ZooForCausalLM

RELATIVE = 2e-5
EXACT, CORRECTED, ILLEGAL, REFUSED, THIRD = "exact", "exact to a corrected oracle", "illegal", "refused", "third"
# No token of a batch is beyond it, however large a vocabulary is.
LARGEST = 1000
ACTIVATIONS = ("gelu_pytorch_tanh", "relu", "silu")
# Classes whose recurrences read what stands at padded places: for them a padded row must equal the row by itself.
LEAKS = {name for name, _ in LEAKS_PADDING}
# Classes whose delta rule casts to float32, so that float64 does not tell rounding from a fault.
WORKS_IN_FLOAT32 = {"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
# Classes that count padding where a token stands: a scale of the queries by position.
COUNTS_PADDING = {"llama4_text"}
# Options with which a class's attention in plain steps is not the one it was trained with: the other one counts.
EAGER_IS_ANOTHER = {
    ("falcon", "alibi"),  # adds the bias twice
    ("gemma", "use_bidirectional_attention"),  # puts a causal mask before what looks both ways
}


@dataclass(frozen=True)
class Row:
    """`changes` on top of the first variant of the family `name`; `otherwise` where its class does not take them."""

    name: str
    changes: tuple[tuple[str, typing.Any], ...]
    otherwise: "Row | None" = None

    def __str__(self):
        return f"{self.name} " + ", ".join(f"{field}={value!r}" for field, value in self.changes)


@dataclass(frozen=True)
class Outcome:
    kind: str
    why: str = ""


@cache
def config_class(name):
    """transformers' config class of a family, None where this version has none."""
    family = family_of(name)
    if not family.tiny or not is_here(name):
        return None
    return class_of(name, family)


def base_arguments(name, variant=0):
    """The arguments of a `tiny` variant under the names of the class, no alias."""
    aliases = config_class(name).attribute_map
    return {aliases.get(key, key): deepcopy(value) for key, value in family_of(name).tiny[variant].items()}


def rows(name):
    """Every option of a family, one by one."""
    own = config_class(name)
    if own is None:
        return []
    config = own(**base_arguments(name))
    # Fields that differ by layer (gpt_oss, nemotron) are read as what the config as a whole says.
    config.allow_global_per_layer_attribute_access = True
    common = {one.name for one in fields(PreTrainedConfig)} - {"tie_word_embeddings"}
    # What stands beside a text model is kept as it is; by default a tower is as large as a published one.
    common |= {*own.sub_configs}
    found = []
    for one in fields(own):
        if one.name in common or one.name.startswith("_"):
            continue
        seen = [getattr(config, one.name, None)]
        for value in options(name, one, config):
            if not any(same(value, other) for other in seen):
                seen.append(value)
                twice = Row(name, ((one.name, 2 * value - 2),)) if is_next(value, seen[0]) else None
                found.append(Row(name, ((one.name, value),), twice))
    return found


def is_next(value, held):
    """Whether a number is the next one, which sizes that divide one another cannot be."""
    return type(value) is int and type(held) is int and value == held + 1 and held > 1


def same(one, other):
    return type(one) is type(other) and one == other


def options(name, one, config):
    """Values a field may have, by its annotation and by what it holds now; those other variants use among them."""
    held, kinds = getattr(config, one.name, None), kinds_of(one.type)
    others = [base_arguments(name, index).get(one.name) for index in range(len(family_of(name).tiny))]
    found = [value for value in others if value is not None]
    if one.name == "rope_parameters" and isinstance(held, dict):
        return [*found, *rotations(held, config), None]
    found += [value for kind in kinds if typing.get_origin(kind) is typing.Literal for value in typing.get_args(kind)]
    if bool in kinds:
        found += [not held]
    elif isinstance(held, bool):
        found += [not held]
    elif isinstance(held, int) or (held is None and int in kinds):
        depth = [config.num_hidden_layers] if held and held < config.num_hidden_layers else []
        found += [(held or 1) + 1, *depth, 0] if not one.name.endswith("token_id") else [(held or 0) + 1]
    elif isinstance(held, float) or (held is None and float in kinds):
        found += [1.5 if held is None else held * 2 or 0.1, 0.0] if math.isfinite(held or 0.0) else [1.0]
    elif isinstance(held, str) and held in ACT2FN:
        found += [act for act in ACTIVATIONS if act != held][:2]
    elif isinstance(held, (list, tuple)) and held:
        found += lists(held)
    return found + ([None] if type(None) in kinds else [])


def kinds_of(annotation):
    """The members of a union, or the one type."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [kind for part in typing.get_args(annotation) for kind in kinds_of(part)] if union else [annotation]


def lists(held):
    """A list in another order, of each of its words alone, one entry longer, empty."""
    held = list(held)
    alone = [[word] * len(held) for word in dict.fromkeys(held)] if isinstance(held[0], str) else []
    numbers = all(isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in held)
    more = [[entry * 2 for entry in held]] if numbers else []
    return [held[::-1], *alone, *more, [*held, held[-1]], []]


def rotations(held, config):
    """Other tables of rotation; of nested ones every table at once."""
    pairs = rotated_pairs(config)
    scaled = {"original_max_position_embeddings": 16}
    tables = [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0} | scaled,
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False} | scaled,
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | scaled,
        {"rope_type": "proportional", "partial_rotary_factor": 0.5},
        {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
         "long_factor": [2.0 + i for i in range(pairs)]} | scaled,
    ]  # fmt: skip
    keep = ("rope_theta", "partial_rotary_factor")
    if not any(isinstance(table, dict) for table in held.values()):
        return [{key: held[key] for key in keep if key in held} | table for table in tables]
    return [
        {word: one and {key: one[key] for key in keep if key in one} | table for word, one in held.items()}
        for table in tables
    ]


def rotated_pairs(config):
    width = getattr(config, "qk_rope_head_dim", None) or getattr(config, "head_dim", None)
    width = width or config.hidden_size // config.num_attention_heads
    tables = config.rope_parameters or {}
    return int(width * (tables.get("partial_rotary_factor") or 1.0)) // 2


def arguments_of(row):
    """The family's first variant with the row's changes; lists that have one entry a layer follow a new depth."""
    arguments = base_arguments(row.name)
    config = config_class(row.name)
    depth_name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    depth = arguments.get(depth_name)
    arguments |= {field: deepcopy(value) for field, value in row.changes}
    wanted = arguments.get(depth_name)
    for name, value in arguments.items():
        if wanted != depth and isinstance(value, list) and len(value) == depth and isinstance(wanted, int):
            arguments[name] = [value[index % depth] for index in range(wanted)]
    return arguments


def batch(vocab_size, padding=4):
    tokens = torch.randint(1, vocab_size, (2, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    tokens[0, :padding], mask[0, :padding] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}


def greedy(model, inputs, **options):
    return model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0, **options)


def outcome(row, folder):
    """What becomes of a row, in an empty folder."""
    first = outcome_of(row, folder)
    if first.kind != ILLEGAL or row.otherwise is None:
        return first
    shutil.rmtree(folder)
    folder.mkdir()
    return outcome_of(row.otherwise, folder)


@torch.no_grad()
def outcome_of(row, folder):
    family = family_of(row.name)
    torch.manual_seed(0)
    try:
        config = config_class(row.name)(**{"attn_implementation": "eager", **arguments_of(row)})
        theirs = build(config, family)
        inputs = batch(min(config.get_text_config().vocab_size, LARGEST))
        expected, tokens = theirs(**inputs).logits, greedy(theirs, inputs)
        theirs.save_pretrained(folder / "source")
    except Exception as error:
        return Outcome(ILLEGAL, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    if not expected.isfinite().all():
        return Outcome(ILLEGAL, "the logits are not finite")
    try:
        convert(folder / "source", folder / "zoo", progress=False)
        ours, info = ZooForCausalLM.from_pretrained(folder / "zoo", output_loading_info=True)
        ours.generation_config.eos_token_id = None
        if any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            return Outcome(THIRD, f"loading: {info}")
        judged = compare(row, theirs, ours, inputs, expected, tokens)
        if judged.kind != THIRD:
            convert(folder / "zoo", folder / "back", to=row.name, progress=False)
            differing = came_back(folder)
            judged = Outcome(THIRD, differing) if differing else judged
        return judged
    except ConversionError as error:
        named = {field for field, _ in row.changes} | {family.fields.get(field, field) for field, _ in row.changes}
        sentence = " ".join(str(error).split())
        return Outcome(REFUSED if any(name in sentence for name in named) else THIRD, sentence)
    except Exception as error:
        return Outcome(THIRD, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def compare(row, theirs, ours, inputs, expected, tokens):
    """The model converted against the one before; the oracle is corrected where it differs from itself."""
    attended, reasons = inputs["attention_mask"].bool(), []
    found, alone = ours(**inputs).logits, {"input_ids": inputs["input_ids"][:1, attended[0]]}
    if not close(found[attended], expected[attended]):
        reason, oracle = corrected(row, theirs, alone, expected[:1, attended[0]])
        if reason:
            reasons, theirs, inputs = [reason], oracle, alone
            found, expected, tokens = ours(**inputs).logits, theirs(**inputs).logits, greedy(theirs, inputs)
            attended = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    if not close(found[attended], expected[attended]):
        wide = both_in_float64(theirs, ours, inputs, attended)
        if (wide is None or not close(*wide)) and not as_near_as_itself(row, theirs, inputs, found, expected, attended):
            return Outcome(THIRD, f"logits differ by {distance(found[attended], expected[attended]):.1e}")
        reasons.append("the order of float32 sums")
    told = greedy(ours, inputs)
    if not torch.equal(told, tokens):
        oracle, reason = corrected_tokens(row, theirs, inputs, alone, tokens)
        if torch.equal(oracle, tokens) or not torch.equal(told, oracle):
            return Outcome(THIRD, "greedy tokens differ")
        reasons.append(reason)
    return Outcome(CORRECTED, "; ".join(reasons)) if reasons else Outcome(EXACT)


def corrected_tokens(row, theirs, inputs, alone, tokens):
    """(tokens of their model as it generates when nothing leads it astray, what does)."""
    if row.name in COUNTS_PADDING:
        start, oracle = inputs["input_ids"].shape[1], tokens.clone()
        oracle[:1, start:] = greedy(theirs, alone)[:, alone["input_ids"].shape[1] :]
        return oracle, "its tokens of a padded row are not those of the row"
    return greedy(theirs, inputs, use_cache=False), "its tokens with a cache are not those without"


def corrected(row, theirs, alone, padded):
    """(why their class is wrong about a padded batch, the model that is right about a row alone) where it differs from
    itself; (None, None) where it does not."""
    oracle, reason = None, None
    if row.name in LEAKS:
        oracle, reason = theirs, "its padding reaches the tokens"
    elif any((row.name, field) in EAGER_IS_ANOTHER for field, _ in row.changes):
        oracle = type(theirs)._from_config(deepcopy(theirs.config), attn_implementation="sdpa").eval()
        oracle.load_state_dict(theirs.state_dict())
        padded, reason = theirs(**alone).logits, "its attention implementations differ"
    differs = oracle is not None and not close(padded, oracle(**alone).logits)
    return (reason, oracle) if differs else (None, None)


def both_in_float64(theirs, ours, inputs, attended):
    """The logits of both models in float64, where the order of float32 sums means nothing; None where one cannot.

    A class whose masked rows are not finite then is asked about each row alone.
    """
    ours, theirs = deepcopy(ours).double(), deepcopy(theirs).double()
    # torch's grouped product of all experts at once takes no float64.
    theirs.set_experts_implementation("eager")
    rows_alone = [{"input_ids": row[None, kept]} for row, kept in zip(inputs["input_ids"], attended, strict=True)]
    try:
        found, expected = ours(**inputs).logits[attended], theirs(**inputs).logits[attended]
        if not expected.isfinite().all():
            found, expected = (torch.cat([model(**row).logits[0] for row in rows_alone]) for model in (ours, theirs))
    except (RuntimeError, TypeError):
        return None
    return found, expected


def as_near_as_itself(row, theirs, inputs, found, expected, attended):
    """Whether their recurrence, which works in float32 whatever the model's dtype, is as far from itself when it reads
    token by token: then the order of sums decides those digits."""
    if row.name not in WORKS_IN_FLOAT32:
        return False
    steps = []
    for tokens, kept in zip(inputs["input_ids"], attended, strict=True):
        cache = None
        for token in tokens[kept]:
            read = theirs(input_ids=token[None, None], past_key_values=cache, use_cache=True)
            cache = read.past_key_values
            steps.append(read.logits[0])
    spread = distance(torch.cat(steps), expected[attended])
    return distance(found[attended], expected[attended]) <= 2 * spread < 1e-3


def distance(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def close(found, expected):
    return bool((found - expected).abs().max() <= RELATIVE * expected.abs().max())


def came_back(folder):
    """What differs between the source and what came back from zoo; None when nothing does."""
    source, back = (load_folder(folder / name) for name in ("source", "back"))
    if sorted(source) != sorted(back):
        return f"tensors there and back differ: {sorted(set(source) ^ set(back))[:4]}"
    for name, tensor in source.items():
        if tensor.dtype != back[name].dtype or not torch.equal(tensor, back[name]):
            return f"{name} came back different"
    before, after = (json.loads((folder / name / "config.json").read_text()) for name in ("source", "back"))
    return None if before == after else "config.json came back different"


def load_folder(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def triples(name, count, seed=0):
    """Random triples of options of three fields."""
    chosen, by_field = random.Random(f"{name} {seed}"), {}
    for row in rows(name):
        by_field.setdefault(row.changes[0][0], []).append(row.changes[0])
    for _ in range(count if len(by_field) >= 3 else 0):
        yield Row(name, tuple(chosen.choice(by_field[field]) for field in chosen.sample(sorted(by_field), 3)))
