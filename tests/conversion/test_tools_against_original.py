"""The ecosystem's tools on a converted model and on the original itself: the same modules found, the same numbers."""

import json
import zlib
from functools import cache

import pytest
import torch
from random_models import build, randomize, their_class_config
from samples import only
from torch import nn
from training_rows import documents, pad_right
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DeepseekV3Config,
    FineGrainedFP8Config,
    LlamaConfig,
    MixtralConfig,
    PrinterCallback,
    Qwen3NextConfig,
    Trainer,
    TrainingArguments,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

from conversion import convert, family_of, known_families
from modeling_zoo import ZooForCausalLM

# Quantisers take blocks of 64 numbers of a row.
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 192, "max_position_embeddings": 64}
SIZES |= {"num_hidden_layers": 3, "num_attention_heads": 4}
HEADS = {"num_key_value_heads": 2, "head_dim": 32}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "mixtral": MixtralConfig(**SIZES, **HEADS, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": DeepseekV3Config(
        **{**SIZES, **EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
        **{"q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 32, "v_head_dim": 48},
        **{"n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "qwen3_next": Qwen3NextConfig(
        **{**SIZES, **HEADS, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 128},
        **{"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
        **{"linear_key_head_dim": 24, "linear_value_head_dim": 16},
    ),
}


class Pair:
    """A folder of an original checkpoint and the folder it was converted to."""

    def __init__(self, config, folder):
        self.source, self.target = folder / "original", folder / "zoo"
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        randomize(model)
        model.save_pretrained(self.source)
        convert(self.source, self.target)

    def original(self, **options):
        return AutoModelForCausalLM.from_pretrained(self.source, **options)

    def installed(self, **options):
        return ZooForCausalLM.from_pretrained(self.target, **options)

    def remote(self, **options):
        """By the code in the folder, although zoo is installed."""
        config, model = remote_classes(self.target)
        return model.from_pretrained(self.target, config=config.from_pretrained(self.target), **options)


@cache
def remote_classes(folder):
    names = ("configuration_zoo.ZooConfig", "modeling_zoo.ZooForCausalLM")
    config, model = (get_class_from_dynamic_module(name, str(folder)) for name in names)
    assert model is not ZooForCausalLM
    return config, model


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    return cache(lambda name: Pair(CONFIGS[name], tmp_path_factory.mktemp(name)))


def tokens(rows=2, length=11):
    return torch.randint(6, 96, (rows, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model):
    """Of the tokens; a learned prompt has some in front."""
    return model(input_ids=tokens()).logits[:, -tokens().shape[1] :].float()


def assert_same_logits(model, other, limit=2e-5):
    expected = logits(other)
    assert (logits(model) - expected).abs().max() < limit * expected.abs().max()


# -- quantisers --------------------------------------------------------------------------------------------------------


def numbers_in(model, package):
    """How many numbers the linear maps hold that a quantiser's package has put in, in how many experts' place."""
    found = [module for module in model.modules() if package in type(module).__module__]
    maps = [module for module in found if hasattr(module, "in_features")]
    return sum(module.in_features * module.out_features for module in maps), len(found) - len(maps)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", only(["deepseek_v3"], CONFIGS))
@pytest.mark.parametrize("way", only(["remote"], ["remote", "installed"]))
def test_bitsandbytes(pair_of, way, name, bits):
    """The same maps in the same memory with the same logits; head, routers and experts as in the original."""
    pair = pair_of(name)
    # In evaluation a CPU's kernels of four bits take outputs in multiples of 32 alone. Nothing here drops out.
    options = {"quantization_config": BitsAndBytesConfig(**{f"load_in_{bits}bit": True})}
    expected, found = pair.original(**options).train(), getattr(pair, way)(**options).train()
    plain = pair.original().get_memory_footprint()
    assert numbers_in(found, "bitsandbytes") == numbers_in(expected, "bitsandbytes")
    assert found.get_memory_footprint() == pytest.approx(expected.get_memory_footprint(), rel=1e-3)
    # Of four bytes of each number of a map one is left, or a half and its scale.
    assert plain - found.get_memory_footprint() > 2.8 * numbers_in(found, "bitsandbytes")[0]
    assert type(found.lm_head) is type(expected.lm_head) is nn.Linear
    assert_same_logits(found, expected)
    assert (logits(found) - logits(pair.original())).abs().max() > 1e-2


@pytest.mark.parametrize("name", only(["llama"], CONFIGS))
def test_torchao(pair_of, name):
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    pair, options = pair_of(name), {"quantization_config": TorchAoConfig(torchao.Int8WeightOnlyConfig())}
    expected, found = pair.original(**options), pair.remote(**options)
    counts = [
        sum(value.numel() for value in model.parameters() if "torchao" in type(value).__module__)
        for model in (expected, found)
    ]
    assert counts[0] == counts[1] > 0
    assert_same_logits(found, expected)


@pytest.mark.parametrize("name", only(["qwen3_next"], CONFIGS))
def test_eight_bits_of_fine_grained_floats(pair_of, name):
    """Their kernels need a GPU; what is replaced is seen without one, and experts are."""
    pair = pair_of(name)
    models = []
    for model in (pair.original(), pair.remote()):
        with torch.device("meta"):
            empty = type(model)(model.config)
        models.append(replace_with_fp8_linear(empty, ["lm_head"], FineGrainedFP8Config()))
    expected, found = (numbers_in(model, "finegrained_fp8") for model in models)
    assert found == expected and found[0] > 0
    assert bool(found[1]) == (name != "llama")


@pytest.mark.parametrize("name", only(["mixtral"], CONFIGS))
def test_dynamic_quantisation_of_torch(pair_of, name):
    # A step for each row: one for a whole matrix is another where the original holds several of zoo's in one.
    pair, kind = pair_of(name), {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
    expected, found = (
        torch.ao.quantization.quantize_dynamic(model.eval(), kind, dtype=torch.qint8)
        for model in (pair.original(), pair.remote())
    )
    counted = [numbers_in(model, "quantized.dynamic") for model in (expected, found)]
    assert counted[0] == counted[1] and counted[0][0] > 0
    assert_same_logits(found, expected)


# -- transformers' Trainer ---------------------------------------------------------------------------------------------


def trained(model, folder, evaluates=True, **arguments):
    """The losses of three steps, the last of which have seen what the first did, and that of an evaluation."""
    settings = {
        **{"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "seed": 1},
        **{"lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
        **{"use_cpu": True, "train_sampling_strategy": "sequential", "optim": "sgd", "max_grad_norm": 0.0},
    }
    args = TrainingArguments(output_dir=str(folder), **settings | arguments)
    learned, held_out = documents(12, 5, 14, vocab_size=96), documents(8, 5, 14, vocab_size=96)
    trainer = Trainer(model=model, args=args, train_dataset=learned, eval_dataset=held_out, data_collator=pad_right)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [*losses, trainer.evaluate()["eval_loss"]] if evaluates else losses


REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
SWITCHES = {
    "plain": {},
    "label smoothing": {"label_smoothing_factor": 0.3},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "smoothing and accumulation": {"label_smoothing_factor": 0.3, "gradient_accumulation_steps": 2},
    "clipping": {"max_grad_norm": 0.1},
    "weight decay": {"weight_decay": 2.0},
    "adafactor": {"optim": "adafactor"},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant": REENTRANT,
    "noise on embeddings": {"neftune_noise_alpha": 5.0},
    "rows by length": {"train_sampling_strategy": "group_by_length"},
    "batch size found": {"auto_find_batch_size": True},
    "bfloat16": {"bf16": True, "bf16_full_eval": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


@pytest.mark.parametrize("switch", only(["label smoothing"], SWITCHES))
@pytest.mark.parametrize("name", only(["llama", "mixtral"], CONFIGS))
@pytest.mark.parametrize("way", only(["remote"], ["remote", "installed"]))
def test_a_switch_of_trainer_does_what_it_does_to_the_original(pair_of, way, name, switch, tmp_path):
    if switch == "adafactor" and name == "qwen3_next":
        pytest.skip("scales by the rows and columns of a matrix, and the original holds several of zoo's in one")
    pair = pair_of(name)
    expected = trained(pair.original(), tmp_path, **SWITCHES[switch])
    found = trained(getattr(pair, way)(), tmp_path, **SWITCHES[switch])
    assert len(set(expected)) == 4
    assert found == pytest.approx(expected, rel=3e-2 if switch == "bfloat16" else 1e-4)


# -- losses of routers -------------------------------------------------------------------------------------------------

# A slow reference has no loss of its own.
ROUTED = [
    name for name in known_families() if "experts" in str(family_of(name).tiny[:1]) and not family_of(name).config_class
]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", only(["dbrx", "deepseek_v3", "gpt_oss", "qwen3_moe"], ROUTED))
def test_a_converted_mixture_has_the_original_s_loss(name, recorded, tmp_path):
    """In training and evaluation: what its output_router_logits and its coefficient say, and back they say the same."""
    family = family_of(name)
    config = their_class_config(name, family, family.tiny[0])
    text = config.get_text_config()
    weighted = hasattr(text, "router_aux_loss_coef")
    text.output_router_logits = recorded
    if weighted:
        text.router_aux_loss_coef = 0.7
    # Noise is drawn for tensors of other shapes.
    if hasattr(text, "router_jitter_noise"):
        text.router_jitter_noise = 0.0
    theirs = build(config, family)
    theirs.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    ours = ZooForCausalLM.from_pretrained(tmp_path / "zoo")
    ids = torch.randint(1, text.vocab_size, (2, 13), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    for training in (True, False):
        losses = []
        for model in (theirs, ours):
            torch.manual_seed(1)
            losses.append(model.train(training)(**inputs).loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    convert(tmp_path / "zoo", tmp_path / "back", to=name, progress=False)
    saved = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("source", "back")]
    assert saved[0] == saved[1]


# -- PEFT --------------------------------------------------------------------------------------------------------------

MODULES = {
    "llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "mixtral": ["q_proj", "k_proj", "o_proj"],
    "deepseek_v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
}
# Kinds of adapters on linear maps, and the settings a small model needs.
ADAPTERS = {
    "LoraConfig": {"r": 3},
    "dora": {"r": 3, "use_dora": True},
    "AdaLoraConfig": {"init_r": 4, "target_r": 2, "total_step": 10},
    "IA3Config": {"feedforward_modules": ["o_proj"]},
    "LoHaConfig": {"r": 3},
    "LoKrConfig": {"r": 3},
    "OFTConfig": {"r": 0, "oft_block_size": 8},
    "BOFTConfig": {"boft_block_size": 8},
    "VeraConfig": {"r": 5},
    "FourierFTConfig": {"n_frequency": 30},
    "HRAConfig": {"r": 4},
    "RandLoraConfig": {"r": 4},
}
PROMPTS = {
    "PromptTuningConfig": {"num_virtual_tokens": 4},
    "PromptEncoderConfig": {"num_virtual_tokens": 4, "encoder_hidden_size": 12},
    "PrefixTuningConfig": {"num_virtual_tokens": 4},
}

# A learned prompt has the size of an embedding; the other is a factor of large random matrices.
SCALES = {"RandLoraConfig": 5e-4, **dict.fromkeys(PROMPTS, 1.0)}
# Fails in the original: PEFT cannot turn the empty tensor that it expands without a cache.
NOT_THERE = [("OFTConfig", "deepseek_v3"), ("PrefixTuningConfig", "deepseek_v3")]


def adapted(model, kind, name):
    """The model with an adapter that does something, and the same thing on every model with these names."""
    import peft

    settings = ADAPTERS.get(kind, PROMPTS.get(kind))
    if kind in ADAPTERS:
        settings = settings | {"target_modules": MODULES[name]}
    config = getattr(peft, "LoraConfig" if kind == "dora" else kind)(task_type="CAUSAL_LM", **settings)
    torch.manual_seed(5)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.Generator().manual_seed(zlib.crc32(key.encode()))
                parameter.add_(SCALES.get(kind, 0.05) * torch.randn(parameter.shape, generator=noise))
    return model


KINDS = [(kind, name) for kind in [*ADAPTERS, *PROMPTS] for name in MODULES if (kind, name) not in NOT_THERE]


@pytest.mark.parametrize(
    "adapter", only([("LoraConfig", "mixtral"), ("HRAConfig", "deepseek_v3"), ("VeraConfig", "llama")], KINDS), ids=str
)
def test_an_adapter_does_what_it_does_to_the_original(pair_of, adapter, tmp_path):
    """The same logits, the same smoothed losses over three steps, the same logits after them."""
    kind, name = adapter
    pair, losses, seen = pair_of(name), [], []
    plain = logits(pair.original())
    for model in (pair.original(), pair.remote()):
        model = adapted(model, kind, name)
        before = logits(model.eval())
        # Trainer itself cannot smooth labels behind a learned prompt.
        smoothing = 0.0 if kind in PROMPTS else 0.2
        rate = 1e-5 if kind == "RandLoraConfig" else 0.1
        losses.append(trained(model, tmp_path, label_smoothing_factor=smoothing, learning_rate=rate))
        seen.append((before, logits(model.eval())))
    for expected, found in zip(*seen, strict=True):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert (seen[0][0] - plain).abs().max() > 1e-2 and (seen[0][1] - seen[0][0]).abs().max() > 1e-4


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", only(["mixtral"], MODULES))
def test_an_adapter_over_few_bits_learns_what_it_learns_on_the_original(pair_of, name, bits, tmp_path):
    """QLoRA: the quantised weights stay, and the steps over them are the original's."""
    pair, losses = pair_of(name), []
    for make in (pair.original, pair.remote):
        model = make(quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}))
        model = adapted(model, "LoraConfig", name)
        before = logits(model.train())
        losses.append(trained(model, tmp_path, evaluates=False, learning_rate=0.1))
        assert (logits(model.train()) - before).abs().max() > 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
