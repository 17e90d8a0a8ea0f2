"""Adapters through the real PEFT, on converted folders loaded by the code inside them."""

import copy
import sys
from functools import cache

import pytest
import torch
from combinations import EXPERTS, FULL, HEADS, LATENT, LINEAR, ROWS, SIZES, STATES
from random_models import randomize
from samples import only
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from configuration_zoo import ZooConfig
from conversion import convert
from modeling_zoo import ZooForCausalLM, lora_targets

peft = pytest.importorskip("peft")
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
ORIGINALS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "mixtral": (MixtralForCausalLM, MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)),
}
MODELS = {
    "grouped": {},
    "latent": LATENT,
    "experts": {**EXPERTS, "n_shared_experts": 1, "shared_expert_gate": True},
    "linear": {"linear_attention_type": "gated_delta_net", "layer_types": [LINEAR, FULL, LINEAR], **HEADS},
    "groups": {
        "linear_attention_type": "mamba",
        "layer_types": [LINEAR, FULL, LINEAR],
        **STATES,
        "linear_attn_config": {"time_step_rank": 5},
    },
}


# Matrices that are no linear maps (experts' biases, block-diagonal gates, decays), and routers.
LEFT_ALONE = (
    *("mlp.gate.weight", "_gate.weight", "_gate.bias", "_proj_bias", "A_log", "conv1d.weight", "weight_bias"),
    *("content_bias", "distance_bias", "norm.weight", "norm.bias", "dt_proj.bias"),
)


@cache
def remote_classes(folder):
    """Config and model of the folder's own code, although zoo is installed."""
    names = ("configuration_zoo.ZooConfig", "modeling_zoo.ZooForCausalLM")
    config, model = (get_class_from_dynamic_module(name, str(folder)) for name in names)
    assert model is not ZooForCausalLM
    return config, model


def remote(folder):
    config, model = remote_classes(folder)
    return model.from_pretrained(folder, config=config.from_pretrained(folder)).eval()


@pytest.fixture(scope="module", params=ORIGINALS)
def pair(request, tmp_path_factory):
    """(folder of an original checkpoint, its class, folder of the converted one)."""
    torch.manual_seed(3)
    model_class, config = ORIGINALS[request.param]
    source, target = (tmp_path_factory.mktemp("adapters") / name for name in ("original", "zoo"))
    original = model_class(config)
    randomize(original)
    original.save_pretrained(source)
    convert(source, target)
    return source, model_class, target


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    torch.manual_seed(4)
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **MODELS[request.param]}))
    randomize(model)
    path = tmp_path_factory.mktemp(request.param) / "model"
    model.save_pretrained(path)
    return path


def tokens(rows=2, length=11):
    return torch.randint(6, 101, (rows, length))


def stir(model, scale=0.2):
    """An adapter that does something: as it starts, it does nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.normal_(0, scale)
            elif "ia3_" in name or "magnitude" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.7, 1.3))


def train(model, steps=3):
    """A few steps of what is trainable; every trainable parameter gets a gradient."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.05)
    inputs = tokens()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=inputs, labels=inputs, attention_mask=torch.ones_like(inputs)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    dead = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert dead == []
    return losses


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(input_ids=inputs).logits


# -- which parts ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_targets_reach_every_weight_of_a_layer():
    """Together they adapt every matrix of a layer but routers, gates of one number and mute indexers."""
    seen = []
    for row in [row for group in ("mixer", "mlp") for row in ROWS[group]]:
        config = ZooConfig(**{**SIZES, **row})
        targets = lora_targets(config)
        if targets not in seen:
            check_targets(ZooForCausalLM(config), targets)
        seen.append(targets)


def check_targets(model, targets):
    assert lora_targets(model) == targets
    before = {name: value.detach().clone() for name, value in model.model.layers.named_parameters() if value.ndim >= 2}
    adapted = get_peft_model(model, LoraConfig(r=2, **targets))
    assert lora_targets(adapted) == targets
    stir(adapted)
    inputs = tokens()
    adapted.train()(input_ids=inputs, labels=inputs).loss.backward()
    learned = {name: value for name, value in adapted.named_parameters() if "lora_" in name}
    assert [name for name, value in learned.items() if value.grad is None or value.grad.abs().max() == 0] == []
    merged = adapted.merge_and_unload().model.layers
    untouched = [name for name, value in before.items() if torch.equal(value, merged.get_parameter(name))]
    assert [name for name in untouched if not name.endswith(LEFT_ALONE) and ".indexer." not in name] == []


def test_parts_are_chosen_by_name():
    config = ZooConfig(**{**SIZES, **LATENT, **EXPERTS})
    assert lora_targets(config, ["experts"]) == {"target_parameters": ["experts.down_proj", "experts.gate_up_proj"]}
    assert lora_targets(config, ["mlp"]) == {"target_modules": ["down_proj", "gate_proj", "up_proj"]}
    attention = lora_targets(config, ["attention"])["target_modules"]
    assert attention == ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_proj"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["experts"], r"Nothing to adapt: parts=\['experts'\], but this ZooForCausalLM has \['attention', 'mlp'\]"),
        (["attentions"], r"parts has \['attentions'\], which are not among \['attention', 'mlp', 'experts'\]"),
    ],
)
def test_what_is_not_there_is_an_error(parts, message):
    with pytest.raises(ValueError, match=message):
        lora_targets(ZooConfig(**SIZES), parts)


def test_a_model_without_layers_has_nothing_to_adapt():
    with pytest.raises(ValueError, match="Nothing to adapt: parts=None, but this Linear has no layer of a zoo model"):
        lora_targets(torch.nn.Linear(3, 3))


# -- adapters from one model to the other ----------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("direction", ["to zoo", "from zoo"])
def test_an_adapter_moves_between_the_original_and_the_converted_model(pair, direction, tmp_path):
    """Trained here with PEFT, saved, loaded there with PEFT: the same logits."""
    source, model_class, target = pair
    original, converted = model_class.from_pretrained(source).eval(), remote(target)
    targets = lora_targets(converted)
    # The names of the package and those the folder itself gives.
    assert converted.lora_targets() == targets
    teacher, student = (original, converted) if direction == "to zoo" else (converted, original)
    trained = get_peft_model(teacher, LoraConfig(r=3, lora_alpha=7, task_type="CAUSAL_LM", **targets))
    stir(trained)
    train(trained)
    trained.save_pretrained(tmp_path)
    inputs = tokens()
    plain = logits(student, inputs)
    loaded = logits(PeftModel.from_pretrained(student, tmp_path), inputs)
    torch.testing.assert_close(loaded, logits(trained, inputs), **TOLERANCE)
    assert (loaded - plain).abs().max() > 0.05


# -- kinds of adapters ------------------------------------------------------------------------------------------------


def settings(kind, model):
    """A PEFT config of each kind, as a user would write it."""
    from peft import IA3Config, PrefixTuningConfig, PromptTuningConfig

    targets = lora_targets(model)
    modules = targets["target_modules"]
    return {
        "lora": lambda: LoraConfig(r=3, **targets),
        "rslora": lambda: LoraConfig(r=3, use_rslora=True, **targets),
        "dora": lambda: LoraConfig(r=3, use_dora=True, target_modules=modules),
        "ia3": lambda: IA3Config(target_modules=modules, feedforward_modules=["down_proj"]),
        "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    }[kind]()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", only(["lora"], ["lora", "rslora", "dora", "ia3"]))
def test_merged_is_the_adapted_model(folder, kind, tmp_path):
    """Trains, generates with a cache, saves, loads, merges: one answer throughout."""
    model = remote(folder)
    adapted = get_peft_model(model, settings(kind, model))
    stir(adapted)
    train(adapted)
    inputs = tokens()
    expected = logits(adapted, inputs)
    generated = adapted.generate(input_ids=inputs, max_new_tokens=6, do_sample=False)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(remote(folder), tmp_path)
    torch.testing.assert_close(logits(again, inputs), expected, rtol=1e-6, atol=1e-6)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged, inputs), expected, rtol=2e-4, atol=2e-4)
    assert torch.equal(merged.generate(inputs, max_new_tokens=6, do_sample=False), generated)
    assert torch.equal(logits(again.unload(), inputs), logits(remote(folder), inputs))


def greedy(model, inputs, steps):
    """The whole sequence again for every token."""
    for _ in range(steps):
        following = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[:, -1].argmax(-1)
        inputs = torch.cat((inputs, following[:, None]), dim=1)
    return inputs


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_learned_tokens_in_front(folder, kind):
    """Trained, and the same text with and without a cache; a prefix only where the cache holds keys and values."""
    model = remote(folder)
    adapted = get_peft_model(model, settings(kind, model))
    if kind == "prefix" and (model.config.attention_type == "latent" or "linear_attention" in model.config.layer_types):
        with pytest.raises(
            ValueError, match="Prefix tuning, which writes keys and values .* use prompt tuning or LoRA"
        ):
            train(adapted)
        return
    torch.nn.init.normal_(adapted.prompt_encoder["default"].embedding.weight)
    losses = train(adapted, steps=6)
    assert losses[-1] < losses[0]
    inputs = tokens()
    with torch.no_grad():
        expected = greedy(adapted.eval(), inputs, 5)
    assert torch.equal(adapted.generate(input_ids=inputs, max_new_tokens=5, do_sample=False), expected)


@pytest.mark.parametrize("flags", [{"sliding_window": 6}, {"attention_chunk_size": 6}], ids=str)
def test_a_prefix_where_layers_see_a_part(flags):
    kind = "sliding_attention" if "sliding_window" in flags else "chunked_attention"
    model = ZooForCausalLM(ZooConfig(**SIZES, layer_types=[kind, "full_attention", kind], **flags))
    randomize(model)
    adapted = get_peft_model(model, settings("prefix", model)).eval()
    torch.nn.init.normal_(adapted.prompt_encoder["default"].embedding.weight)
    inputs = tokens()
    with torch.no_grad():
        expected = greedy(adapted, inputs, 5)
    assert torch.equal(adapted.generate(input_ids=inputs, max_new_tokens=5, do_sample=False), expected)


# -- transformers' own way --------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
def test_add_and_load_adapters_by_the_model_s_own_methods(folder, tmp_path):
    """Several adapters side by side, one active at a time, off and on, saved and loaded."""
    model = remote(folder)
    inputs = tokens()
    plain = logits(model, inputs)
    targets = lora_targets(model)
    seen = {}
    for name in ("first", "second"):
        model.add_adapter(LoraConfig(r=3, **targets), adapter_name=name)
        model.set_adapter(name)
        stir(model)
        seen[name] = logits(model, inputs)
    # Stirring reached both, so the first is read again.
    model.set_adapter("first")
    seen["first"] = logits(model, inputs)
    assert (seen["first"] - seen["second"]).abs().max() > 1e-2
    model.disable_adapters()
    torch.testing.assert_close(logits(model, inputs), plain)
    model.enable_adapters()
    torch.testing.assert_close(logits(model, inputs), seen["first"])
    model.save_pretrained(tmp_path / "first")
    assert (tmp_path / "first" / "adapter_config.json").is_file()
    again = remote(folder)
    again.load_adapter(str(tmp_path / "first"))
    torch.testing.assert_close(logits(again, inputs), seen["first"])


def test_an_adapter_counts_in_absorbed_decode(tmp_path):
    """Steps over a long cache of latents read kv_b_proj as it is with its adapter, by whatever way it came."""
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **LATENT, "max_position_embeddings": 256}))
    randomize(model)
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=3, target_modules=["kv_b_proj"])).eval()
    stir(adapted, 0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = remote(tmp_path / "base")
    loaded.load_adapter(str(tmp_path / "adapter"))
    inputs = tokens(1, 200)
    module = sys.modules[type(loaded).__module__]
    forms = []
    plain = module.absorbed
    module.absorbed = lambda *args: forms.append(1) or plain(*args)
    try:
        with torch.no_grad():
            whole = loaded(inputs).logits[:, -1]
            assert forms == []
            cache = loaded(inputs[:, :-1]).past_key_values
            step = loaded(inputs[:, -1:], past_key_values=cache).logits[:, -1]
    finally:
        module.absorbed = plain
    assert len(forms) == 3
    torch.testing.assert_close(step, whole, rtol=1e-4, atol=1e-4)
    assert (step - model.eval()(inputs).logits[:, -1]).abs().max() > 0.05


def test_eight_bits_under_an_adapter(folder):
    """QLoRA's way on a CPU: int8 weights of torchao, frozen, a LoRA on top that trains."""
    torchao = pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    assert torchao.__version__
    plain = remote(folder)
    inputs = tokens()
    expected = logits(plain, inputs)
    quantized = type(plain).from_pretrained(
        folder, config=plain.config, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    found = logits(quantized, inputs)
    # The same model with weights rounded to what eight bits hold.
    rounded = 0
    for name, module in quantized.named_modules():
        if hasattr(getattr(module, "weight", None), "dequantize") and "torchao" in type(module.weight).__module__:
            plain.get_submodule(name).weight.data.copy_(module.weight.dequantize())
            rounded += 1
    assert rounded >= 3 * len(lora_targets(plain, ["attention"])["target_modules"]) / 2
    torch.testing.assert_close(found, logits(plain, inputs), rtol=1e-3, atol=1e-3)
    assert (found - expected).abs().max() > 1e-3
    adapted = get_peft_model(quantized, LoraConfig(r=3, **lora_targets(quantized)))
    stir(adapted)
    losses = train(adapted.train(), steps=6)
    assert losses[-1] < losses[0]
    whole = logits(adapted, inputs)
    with torch.no_grad():
        cache = adapted(input_ids=inputs[:, :-1], use_cache=True).past_key_values
        step = adapted(input_ids=inputs[:, -1:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(step[:, -1], whole[:, -1], rtol=1e-3, atol=1e-3)


@pytest.mark.sampled(2)
def test_four_bits_under_an_adapter(folder):
    """QLoRA by bitsandbytes on a CPU: every linear map but head and routers in NF4, a LoRA and new rows of the token
    table on top; the quantized model is the plain one with rounded weights, and its adapter merges into that one."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    plain = remote(folder)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantized = type(plain).from_pretrained(folder, config=plain.config, quantization_config=settings)
    # Packed anew for evaluation on some CPUs, in sizes of multiples of 32 alone: nothing here is random in training.
    quantized.train()
    rounded = {n: m for n, m in quantized.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    for name, module in rounded.items():
        weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        plain.get_submodule(name).weight.data.copy_(weight)
    modules = [n for n, m in plain.named_modules() if type(m) is torch.nn.Linear and "lm_head" not in n]
    assert {n for n in modules if not n.endswith("_gate")} <= rounded.keys()
    inputs = tokens()
    for model in (plain, quantized):
        model.resize_token_embeddings(103, mean_resizing=False)
    quantized.get_input_embeddings().weight.data.copy_(plain.get_input_embeddings().weight.data)
    if not plain.config.tie_word_embeddings:
        quantized.get_output_embeddings().weight.data.copy_(plain.get_output_embeddings().weight.data)
    torch.testing.assert_close(quantized(inputs).logits, plain.train()(inputs).logits, rtol=1e-4, atol=1e-4)
    config = LoraConfig(r=3, trainable_token_indices=[101, 102], **lora_targets(quantized))
    adapted = get_peft_model(peft.prepare_model_for_kbit_training(quantized, use_gradient_checkpointing=False), config)
    inputs[:, 3:5] = torch.tensor([101, 102])
    stir(adapted)
    losses = train(adapted, steps=4)
    assert losses[-1] < losses[0]
    expected = adapted(input_ids=inputs).logits
    same = get_peft_model(plain, config)
    same.load_state_dict({k: v for k, v in adapted.state_dict().items() if "lora_" in k or "delta" in k}, strict=False)
    torch.testing.assert_close(same.merge_and_unload()(inputs).logits, expected, rtol=1e-3, atol=1e-3)
