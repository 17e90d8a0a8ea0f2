"""Every family file against transformers' own model: same logits, same tokens, and back again bit for bit."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import transformers
from checkpoint_checks import (
    LEAKS_PADDING,
    LOSES_DIGITS,
    RELATIVE,
    assert_same_config,
    assert_same_tensors,
    batch,
    tensors_of,
)
from places import CONFIGS
from random_models import build, oracle_of, parameters_at_work, their_class_config
from samples import only
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import conversion
from conversion import convert, export_config, family_of, import_config, known_families, load
from conversion.engine.config_bridge import their_config
from conversion.engine.registry import file_name
from modeling_zoo import ZooForCausalLM

VARIANTS = [(name, index) for name in known_families() for index in range(len(family_of(name).tiny))]
# Files of so few lines give another family's rules other fields.
SHORT = 35
CORE = ("llama", "mistral", "qwen2", "qwen3")


def stands_alone(name):
    file = Path(conversion.__file__).parent / "families" / f"{name}.py"
    return name in CORE or len(file.read_text().splitlines()) > SHORT


FIRST = [(name, index) for name, index in VARIANTS if index == 0 and stands_alone(name)]
# One for each way to lay out tensors: by name, transposed, with an offset, stacked, absorbed, with a state.
LAYOUTS = ("llama", "gpt2", "gemma", "mixtral", "deepseek_v3", "qwen3_next")
# The deepest take seconds to build, and repeat their layers.
DEEPEST = 32


@pytest.fixture(params=only(FIRST, VARIANTS), ids=lambda variant: f"{variant[0]}-{variant[1]}")
def variant(request):
    name, index = request.param
    family = family_of(name)
    return name, family, their_class_config(name, family, family.tiny[index]), index


def greedy(model, inputs):
    return model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)


def test_logits_tokens_and_the_way_back(variant, tmp_path):
    name, family, config, index = variant
    theirs = build(config, family)
    source, zoo, back = tmp_path / "source", tmp_path / "zoo", tmp_path / "back"
    # Every second variant in many shards, both ways.
    size = "20KB" if index % 2 else "5GB"
    theirs.save_pretrained(source, max_shard_size=size)

    convert(source, zoo, max_shard_size=size, progress=False)
    ours, info = ZooForCausalLM.from_pretrained(zoo, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours.generation_config.eos_token_id = None
    inputs = batch(config.get_text_config().vocab_size, padding=0 if (name, index) in LEAKS_PADDING else 4)
    with torch.no_grad():
        reference = deepcopy(theirs).double() if name in LOSES_DIGITS else theirs
        expected, found = reference(**inputs).logits.float(), ours(**inputs).logits
    attended = inputs["attention_mask"].bool()
    expected, found = expected[attended], found[attended]
    assert expected.std() > 1e-3, "logits that are all alike compare nothing"
    assert (found - expected).abs().max() <= RELATIVE * expected.abs().max()
    assert torch.equal(greedy(ours, inputs), greedy(theirs, inputs))

    if name in LAYOUTS:
        straight = load(source).state_dict()
        for key, tensor in ours.state_dict().items():
            assert torch.equal(straight[key], tensor), key

    convert(zoo, back, to=name, max_shard_size=size, progress=False)
    assert_same_tensors(tensors_of(back), tensors_of(source))
    assert_same_config(back, source)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.bfloat16, id="bfloat16"),
        pytest.param(torch.float16, id="float16", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("name", only(LAYOUTS, [name for name in known_families() if family_of(name).tiny]))
def test_half_precision_is_preserved(name, dtype, tmp_path):
    family = family_of(name)
    theirs = build(their_class_config(name, family, family.tiny[-1]), family, dtype)
    source, zoo, back = tmp_path / "source", tmp_path / "zoo", tmp_path / "back"
    theirs.save_pretrained(source)
    convert(source, zoo, progress=False)
    convert(zoo, back, to=name, progress=False)
    assert json.loads((zoo / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert dtype in {tensor.dtype for tensor in tensors_of(zoo).values()}
    assert_same_tensors(tensors_of(back), tensors_of(source))
    assert_same_config(back, source)


@pytest.mark.parametrize(
    "variant",
    only([(name, 0) for name in LAYOUTS], VARIANTS),
    indirect=True,
    ids=lambda variant: f"{variant[0]}-{variant[1]}",
)
def test_a_model_that_came_from_nowhere_goes_out_to_the_family(variant, tmp_path):
    """Without the source's config.json the family's own class reads what was written and computes the same."""
    name, family, config, _ = variant
    if family.section or family.reads:
        pytest.skip("its checkpoints hold more than transformers' text model of this type")
    if getattr(config, "zero_expert_num", 0):
        pytest.skip("transformers refuses a checkpoint without weights for the experts that have none")
    source, zoo, out = tmp_path / "source", tmp_path / "zoo", tmp_path / "out"
    theirs = build(config, family)
    theirs.save_pretrained(source)
    ours = load(source)
    ours.config.source_config = None
    ours.save_pretrained(zoo)
    convert(zoo, out, to=name, progress=False)
    oracle = oracle_of(family, config.model_type)
    again, info = oracle.from_pretrained(
        out, output_loading_info=True, attn_implementation=theirs.config._attn_implementation
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # Tensors mapped from a file may stand where a product sums in another order.
    for parameter in again.parameters():
        parameter.data = parameter.data.clone()
    inputs = batch(config.get_text_config().vocab_size)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, theirs(**inputs).logits)


def public_configs():
    """(id, config.json) of every public config whose family is known."""
    known, seen = known_families(), set()
    for path in sorted(CONFIGS.glob("*.json")):
        raw = json.loads(path.read_text())
        # Some sources store constructor arguments and the class they belong to.
        class_name = raw.pop("__cls__", None)
        # How a checkpoint stores its numbers says nothing about how many there are.
        raw.pop("quantization_config", None)
        if "model_type" not in raw and class_name:
            raw["model_type"] = class_name.removesuffix("Config").lower()
        if file_name(raw.get("model_type") or "") in known:
            name = file_name(raw["model_type"])
            deep = raw.get("text_config", raw).get("num_hidden_layers", 0) > DEEPEST
            again = name in seen or not stands_alone(name)
            if not deep:
                seen.add(name)
            now = name in CORE or not (deep or again)
            yield pytest.param(raw, id=path.stem, marks=[] if now else [pytest.mark.long])


def original_of(theirs, family):
    """A model of another library's own class, or of the reference for one that none has."""
    oracle = oracle_of(family, theirs.model_type)
    if oracle is AutoModelForCausalLM:
        oracle = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[theirs.model_type])
    return oracle(theirs)


@pytest.mark.parametrize("raw", public_configs())
def test_public_config_has_the_original_number_of_parameters(raw):
    name = file_name(raw["model_type"])
    family = family_of(name)
    theirs = their_config(raw, name, family)
    with torch.device("meta"):
        original = original_of(theirs, family)
        ours = ZooForCausalLM(import_config(raw))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in original.parameters())
    assert export_config(import_config(raw), name) == raw


# Where no other library says how many there are, the number that the checkpoint's page gives; sizes from its config.
PUBLISHED_COUNTS = {
    "ChatGLM3-6B": ("mlcpreset-chatglm", {}, 6_243_584_000),
    "InternLM2-7B": ("mlcpreset-internlm2", {}, 7_737_708_544),
    "MiniCPM-2B": ("mlcpreset-minicpm_2b", {"vocab_size": 122753, "tie_word_embeddings": True}, 2_724_880_896),
    "Qwen-7B": (None, {"model_type": "qwen"}, 7_721_324_544),
    "DeepSeekMoE-16B": (
        None,
        {
            "model_type": "deepseek", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 2,
            "n_routed_experts": 64, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        },
        16_375_728_128,
    ),
    "Falcon-7B, in its first files": (
        None,
        {
            "model_type": "RefinedWebModel", "hidden_size": 4544, "n_layer": 32, "n_head": 71, "multi_query": True,
            "parallel_attn": True, "vocab_size": 65024,
        },
        6_921_720_704,
    ),
    "Baichuan-7B": (None, {"model_type": "baichuan", "max_position_embeddings": 4096}, 7_000_559_616),
    "Baichuan-13B": (
        None,
        {
            "model_type": "baichuan", "hidden_size": 5120, "intermediate_size": 13696, "num_hidden_layers": 40,
            "num_attention_heads": 40,
        },
        13_264_901_120,
    ),
    "Ling-mini-2.0": (
        None,
        {
            "model_type": "bailing_moe", "n_group": 8, "topk_group": 4, "first_k_dense_replace": 1,
            "score_function": "sigmoid", "moe_router_enable_expert_bias": True, "use_qk_norm": True,
            "partial_rotary_factor": 0.5, "routed_scaling_factor": 2.5,
        },
        16_255_643_392,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("file", "changes", "count"), PUBLISHED_COUNTS.values(), ids=PUBLISHED_COUNTS)
def test_families_of_published_code_have_the_published_number_of_parameters(file, changes, count):
    raw = json.loads((CONFIGS / f"{file}.json").read_text()) if file else {}
    with torch.device("meta"):
        ours = ZooForCausalLM(import_config(raw | changes))
    # A tied table once, the selection bias of a router too.
    assert sum(tensor.numel() for tensor in {*ours.state_dict(keep_vars=True).values()}) == count


def test_deepseek_v3_has_671_billion_parameters_and_37_at_work():
    raw = json.loads((CONFIGS / "deepseek-v3.json").read_text())
    config = import_config({key: value for key, value in raw.items() if key != "quantization_config"})
    total, active = parameters_at_work(config)
    assert round(total / 1e9) == 671
    assert int(active / 1e9) == 37
