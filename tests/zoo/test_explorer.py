"""The explorer reckons, refuses and computes in JavaScript what zoo does in Python."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from random_configs import draw_config, draw_fields
from random_fields import KINDS
from references_attention import sees
from tiny_models import VARIANTS, tiny_config

from configuration_zoo import ZooConfig
from configuration_zoo.field_kinds import Choice, Flag, Items
from configuration_zoo.field_settings import nested
from configuration_zoo.fields_per_layer import ALL
from configuration_zoo.presets import presets
from configuration_zoo.vocabulary import ATTENTION_TYPES, BLOCK_TYPES, RECURRENCES
from conversion import known_families
from conversion.engine.catalog import model_type_of
from conversion.engine.config_bridge import import_config
from conversion.engine.registry import family_of
from conversion.engine.text_models import inside_by_default, with_part
from conversion.engine.their_config import class_of
from description_zoo.flops import flops
from description_zoo.measure import empty_model, measure
from zoo.cli.errors import UserError
from zoo.cli.placement import place
from zoo.site.explorer import STATIC, families
from zoo.site.explorer.rules import rules

DRIVER = Path(__file__).parents[1] / "support" / "explorer.mjs"
CONTEXTS = (257, 1_000_003)
TOTALS = (
    "dtype", "parameters", "active_parameters", "least_active_parameters", "embedding_parameters",
    "prediction_parameters", "cache_bytes_per_token", "window_bytes", "state_bytes", "workspace_bytes",
    "cache_bytes_at_full_length",
)  # fmt: skip
OF_LAYERS = (
    "parameters", "inactive_parameters", "cache_bytes_per_token", "state_bytes", "workspace_bytes", "window",
)  # fmt: skip
WORDS = (
    "mixer", "context", "positions", "features", "block", "residual", "mlp", "widths", "experts", "kind", "differs",
)  # fmt: skip
# Of keys that are written whatever they are, those that transformers sets; nothing in the page reads them.
THEIRS = {"transformers_version", "id2label", "label2id", "output_attentions", "_name_or_path", "dtype"}
SAMPLE = [
    "deepseek_v32",
    "deepseek_v4",
    "minimax_m3_vl_text",
    "hy_v4",
    "gemma4_text",
    "longcat_flash",
    "qwen3_next",
    "zamba2",
    "laguna",
]

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    """The explorer's JavaScript without its tables of models."""
    folder = tmp_path_factory.mktemp("explorer")
    shutil.copytree(STATIC, folder, ignore=shutil.ignore_patterns("families.js"), dirs_exist_ok=True)
    for name, source in rules().items():
        (folder / name).write_text(source, encoding="utf-8")
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    return folder


def plain(value):
    """A value as JSON has it."""
    return json.loads(json.dumps(value, default=lambda one: str(one).removeprefix("torch.")))


def ask(folder, questions):
    """What the explorer answers to each of them."""
    command = ["node", str(DRIVER), str(folder)]
    done = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def config_json(config):
    config.source_config = config.source_extras = config.surgery = None
    return plain({name: value for name, value in config.to_diff_dict().items() if name not in THEIRS - {"dtype"}})


def compare(folder, configs):
    """Every number and every word of every config."""
    wants = ["whole", "written", "tensors", "sizes", "words"]
    questions = [{"config": config_json(one), "contexts": CONTEXTS, "wants": wants} for one in configs.values()]
    for (name, config), answer in zip(configs.items(), ask(folder, questions), strict=True):
        assert "refused" not in answer, (name, answer)
        model = empty_model(config)
        report = measure(config, model)
        shapes = {key: list(weight.shape) for key, weight in model.named_parameters()}
        assert answer["tensors"] == shapes, name
        sizes = answer["sizes"]
        assert {key: sizes[key] for key in TOTALS} == {key: report[key] for key in TOTALS}, name
        for mine, layer in zip(sizes["layers"], report["layers"], strict=True):
            assert mine == {key: layer[key] for key in OF_LAYERS}, (name, layer["layer"])
        for context in CONTEXTS:
            count = flops(model, context)
            count["checkpointed"] = count.pop("train_checkpointed")
            assert sizes["flops"][str(context)] == count, (name, context)
        whole = {key: value for key, value in plain(config.to_dict()).items() if key not in THEIRS}
        assert {key: value for key, value in answer["whole"].items() if key not in THEIRS} == whole, name
        written = {key: value for key, value in config_json(config).items() if key not in THEIRS}
        assert {key: value for key, value in answer["written"].items() if key not in THEIRS} == written, name
        for mine, layer in zip(answer["words"], report["layers"], strict=True):
            assert mine == {key: plain(layer[key]) for key in WORDS}, (name, layer["layer"])


@needs_node
def test_sizes_and_words_are_those_of_measure(scripts):
    tiny = {name: tiny_config((name, 0)) for name in SAMPLE}
    compare(scripts, tiny | {name: ZooConfig.preset(name) for name in ("gpt2",)})


BASES = [
    {},
    {"num_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2, "topk_group": 2},
    {"attention_type": "latent", "layer_types": "indexed_attention", "q_lora_rank": 6, "index_head_dim": 8},
    {"layer_types": ["linear_attention", "full_attention"], "linear_attention_type": "gated_delta_net"},
    {"layer_types": "linear_attention", "linear_attention_type": "mamba"},
    {"layer_types": "hybrid", "linear_attention_type": "mamba2", "block_type": ["shared_block"] * 2},
    {"qk_norm": "layer_norm", "sliding_window": 5, "layer_types": "sliding_attention"},
    {"norm_type": "layer_norm", "num_mtp_layers": 1},
]
SMALL = {
    "vocab_size": 41, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 20,
}  # fmt: skip


def every_word():
    """{field=word: config} of every word that a field can say, in the first of some models that takes it."""
    for name, kind in KINDS.items():
        entry = kind.entry if isinstance(kind, Items) and kind.per_layer else kind
        words = entry.names if isinstance(entry, Choice) else (True, False) if isinstance(entry, Flag) else ()
        for word in words:
            value = [word] * 2 if entry is not kind and "_types" in name else word
            for base in BASES:
                try:
                    yield f"{name}={word}", ZooConfig(**nested(SMALL | base | {name: value}))
                except (StrictDataclassError, ValueError):
                    continue
                break


@needs_node
@pytest.mark.long
def test_weights_of_every_word_of_every_field(scripts):
    """What a new word adds to a model has to be reckoned too."""
    configs = dict(every_word())
    assert len(configs) > 200
    compare_weights(scripts, configs)


def compare_weights(folder, configs):
    questions = [{"config": config_json(one), "wants": ["tensors"]} for one in configs.values()]
    for (name, config), answer in zip(configs.items(), ask(folder, questions), strict=True):
        shapes = {key: list(weight.shape) for key, weight in empty_model(config).named_parameters()}
        assert answer.get("tensors", answer) == shapes, name


@needs_node
def test_weights_of_every_block(scripts):
    words = {name: {"block_type": [name] * 2} for name in BLOCK_TYPES}
    words["mlp_only"]["layer_types"] = ["moe"] * 2
    words["shared_block"] |= {"layer_types": ["hybrid"] * 2, "linear_attention_type": "mamba2"}
    compare_weights(scripts, {name: ZooConfig(**SMALL, **given) for name, given in words.items()})


@needs_node
def test_sizes_of_every_mechanism(scripts):
    kinds = {name: {"attention_type": name} for name in ATTENTION_TYPES}
    kinds |= {name: {"layer_types": "linear_attention", "linear_attention_type": name} for name in RECURRENCES}
    compare(scripts, {name: ZooConfig(**SMALL | {"num_hidden_layers": 1}, **given) for name, given in kinds.items()})


@needs_node
@pytest.mark.long
def test_sizes_of_every_preset(scripts):
    compare(scripts, {name: ZooConfig.preset(name) for name in presets()})


@needs_node
@pytest.mark.long
def test_sizes_of_every_family(scripts):
    from conversion import known_families
    from conversion.engine.catalog import usual_config

    compare(scripts, {f"{name} {index}": tiny_config((name, index)) for name, index in VARIANTS})
    compare(scripts, {name: usual_config(name) for name in known_families()})


@needs_node
@pytest.mark.parametrize("count", [5, pytest.param(300, marks=pytest.mark.long)])
def test_sizes_of_random_configs(scripts, count):
    """Combinations that no published model has."""
    rng = random.Random(19)
    drawn = [draw_config(rng, ALL)[1] for _ in range(count)]
    compare(scripts, {f"random {index}": config for index, config in enumerate(drawn) if config is not None})


def outcome(values):
    """How ZooConfig refuses some fields, None where it takes them."""
    try:
        ZooConfig(**json.loads(json.dumps(values)))
    except (StrictDataclassError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


CONTRADICTIONS = [
    {"num_attention_heads": 5, "hidden_size": 64},
    {"num_attention_heads": 6, "num_key_value_heads": 4, "hidden_size": 96},
    {"layer_types": "3*linear_attention, full_attention", "num_hidden_layers": 8},
    {"layer_types": ["full_attention"], "num_hidden_layers": 2},
    {"layer_types": ["sliding"], "num_hidden_layers": 1},
    {"layer_types": "sliding_attention"},
    {"attention_type": "mla"},
    {"attention_type": "latent", "kv_lora_rank": 4, "qk_rope_head_dim": 3},
    {"qk_norm": True},
    {"num_experts": 8},
    {"num_experts": 8, "num_experts_per_tok": 9},
    {"num_experts": 8, "num_experts_per_tok": 2, "n_group": 3},
    {"linear_attention_type": "mamba2"},
    {"linear_attention_type": "gdn", "layer_types": "linear_attention"},
    {"kv_lora_rank": 64},
    {"hidden_size": 2.5},
    {"hidden_size": 0},
    {"hidden_size": "wide"},
    {"norm_type": "rmsnorm"},
    {"num_exprts": 4},
    {"d_ff": 4},
    {"n_layers": 4},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_theta": -1}},
    {"position_embedding_type": "alibi", "rope_parameters": {"rope_theta": 1e4}},
    {"per_layer_config": {"1": {"num_key_value_heads": 3}}, "num_attention_heads": 4, "hidden_size": 64},
    {"per_layer_config": {"9": {"head_dim": 3}}, "num_hidden_layers": 4},
    {"num_kv_shared_layers": 40},
    {"block_type": "parallel", "mlp_layer_types": ["sparse"] * 2, "num_hidden_layers": 2},
    {"qk_norm": "rms_norm", "qk_norm_config": {"scop": "head"}},
    {"precision": {"norm": "fast"}},
    {"sliding_window": 0},
    {"no_rope_layers": [0, 1], "num_hidden_layers": 2, "position_embedding_type": "learned"},
]


@needs_node
def test_refusals_are_those_of_zoo_config(scripts):
    expected = [outcome(values) for values in CONTRADICTIONS]
    assert sum(one is None for one in expected) < 4
    answers = ask(scripts, [{"config": values, "wants": []} for values in CONTRADICTIONS])
    assert [answer.get("refused") for answer in answers] == expected


@needs_node
@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.long)])
def test_refusals_of_random_fields(scripts, count):
    rng = random.Random(4)
    drawn = [plain(draw_fields(rng)) for _ in range(count)]
    expected = [outcome(values) for values in drawn]
    assert sum(one is not None for one in expected) > count / 2
    answers = ask(scripts, [{"config": values, "wants": []} for values in drawn])
    for values, answer, refused in zip(drawn, answers, expected, strict=True):
        assert answer.get("refused") == refused, values


RANKS = [(2, 1), (4, 1), (3, 1), (1, 2), (2, 4), (8, 4), (1, 8)]


def placement(config, tp, ep):
    try:
        placed = place(config, tp, ep, 5000, 3)
    except UserError as error:
        return str(error)
    return {name: value for name, value in placed.items() if name in KEPT}


KEPT = (
    "ranks", "fsdp", "bytes", "bytes_per_rank", "dense_bytes_per_rank", "expert_bytes_per_rank", "gathered_bytes",
    "cache_bytes_per_rank",
)  # fmt: skip


@needs_node
@pytest.mark.parametrize(
    "names",
    [["deepseek_v32", "gpt_oss", "qwen3_next"], pytest.param([name for name, _ in VARIANTS], marks=pytest.mark.long)],
)
def test_ranks_hold_what_zoo_inspect_says(scripts, names):
    configs = [tiny_config((name, 0)) for name in dict.fromkeys(names)]
    questions = []
    for config in configs:
        dtype = str(config.dtype).removeprefix("torch.")
        ranks = [{"tp": tp, "ep": ep, "context": 5000, "batch": 3, "dtype": dtype} for tp, ep in RANKS]
        questions.append({"config": config_json(config), "wants": [], "ranks": ranks})
    for config, name, answer in zip(configs, dict.fromkeys(names), ask(scripts, questions), strict=True):
        for ranks, mine in zip(RANKS, answer["placed"], strict=True):
            held = mine if isinstance(mine, str) else {key: mine[key] for key in KEPT}
            assert held == placement(config, *ranks), (name, ranks)


MASKS = [
    {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3},
    {"layer_types": ["full_attention", "chunked_attention"], "attention_chunk_size": 5},
    {"sparse_attention_pattern": ["strided", "fixed"], "sparse_attention_stride": 3},
    {"sparse_attention_pattern": ["banded", "none"], "sparse_attention_stride": 4},
    {"use_bidirectional_attention": True},
]


@needs_node
def test_masks_are_those_of_the_reference(scripts):
    configs = [ZooConfig(num_hidden_layers=2, **given) for given in MASKS]
    questions = [{"config": config_json(config), "wants": [], "tokens": 17} for config in configs]
    for config, answer in zip(configs, ask(scripts, questions), strict=True):
        for layer in range(2):
            expected = [[sees(config, layer, query, key, 0) for key in range(17)] for query in range(17)]
            assert answer["masks"][layer] == expected, config.layer_types[layer]


CONFIGS = Path(__file__).parents[1] / "support" / "data" / "configs"
FEW = ["deepseek-v3", "llama3.1-8b", "glm-5", "nemotron-h-56b", "mlcpreset-gemma2_2b"]


@needs_node
def test_published_configs_are_read_as_zoo_reads_them(scripts, monkeypatch):
    """The config.json of other families, which somebody drops on the page; models inside of others are long."""
    monkeypatch.setattr(families, "wrapper_table", dict)
    compare_foreign(scripts, {name: json.loads((CONFIGS / f"{name}.json").read_text("utf-8")) for name in FEW})


@needs_node
@pytest.mark.long
def test_every_published_config_is_read_as_zoo_reads_it(scripts):
    raws = {path.stem: json.loads(path.read_text("utf-8")) for path in CONFIGS.glob("*.json")}
    compare_foreign(scripts, raws)


@needs_node
@pytest.mark.long
def test_configs_of_every_family_are_read_as_zoo_reads_them(scripts):
    """Of each family the model of the defaults and the small ones, of each wrapper the default one."""
    compare_foreign(scripts, dict(family_configs()))


def family_configs():
    for name in known_families():
        family, model_type = family_of(name), model_type_of(name)
        smalls = [plain(class_of(name, family).from_dict(dict(given)).to_dict()) for given in family.tiny]
        for index, own in enumerate([{"model_type": family.reads or model_type}, *smalls]):
            whole = {"model_type": model_type}
            yield f"{name} {index}", with_part(whole, family.section, own) if family.section else own | whole
    for name in families.wrapper_table():
        place, inner = inside_by_default(name)
        yield f"{name} around {inner}", with_part({"model_type": name}, place, {"model_type": inner})


def compare_foreign(folder, raws):
    (folder / "families.js").write_text(families.families(), encoding="utf-8")
    questions = [{"config": raw, "foreign": True, "wants": ["whole"]} for raw in raws.values()]
    for (name, raw), answer in zip(raws.items(), ask(folder, questions), strict=True):
        try:
            config = import_config(raw)
        except ValueError as error:
            assert answer.get("refused", "").rpartition(": ")[2] in str(error), name
            continue
        config.source_config = config.source_extras = None
        expected = {key: value for key, value in plain(config.to_dict()).items() if key not in FOREIGN}
        assert {key: value for key, value in answer["whole"].items() if key not in FOREIGN} == expected, name


# What a head is called and labelled: the page reckons language models.
FOREIGN = THEIRS - {"dtype"} | {"architectures", "problem_type"}
