"""The ecosystem's tools on a converted model and on the original itself: the same modules found, the same numbers."""

from functools import cache

import pytest
import torch
from random_models import randomize
from samples import only
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DeepseekV3Config,
    FineGrainedFP8Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3NextConfig,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

from conversion import convert
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
    return model(input_ids=tokens()).logits.float()


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
    pytest.importorskip("bitsandbytes")
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
