"""Two processes give one process's logits, gradients and tokens, and save the whole model; plans name what is there."""

import re
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from combinations import (
    EXPERTS,
    FULL,
    HEADS,
    HYBRID,
    INDEXER,
    LATENT,
    LINEAR,
    ROWS,
    SHARED_BLOCKS,
    SIZES,
    STATES,
    linear,
)
from parallel_worker import cached_numbers
from places import SUPPORT
from random_models import randomize
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing import start_processes
from transformers.distributed import DistributedConfig

from configuration_zoo.fields_linear import LINEAR_MECHANISMS
from modeling_zoo import ZooConfig, ZooForCausalLM
from zoo.training.ranks import check_heads, fit_to_ranks

EVEN = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101}
EXPERTS = {**EXPERTS, "num_experts": 4}
RANKED = {**LATENT, "num_key_value_heads": 4, "q_lora_rank": 18}
# Two heads of keys are one for each rank; values have twice as many.
RECURRENT = {
    "gated_delta_net": {**HEADS, "linear_attn_config": {"conv_bias": True, "allow_neg_eigval": True}},
    "kimi_delta_attention": {**HEADS, "linear_attn_config": {"decay_rank": 6, "gate_rank": 6}},
    "delta_net": {**HEADS, "linear_attn_config": {"bias": True, "output_gate": "none"}},
    "linear_attention": {**HEADS, "linear_attn_config": {"output_norm": "group", "feature_map": "elu_plus_one"}},
    "gated_linear_attention": HEADS,
    "lightning_attention": HEADS,
    "gated_delta_product": HEADS,
    "mamba2": HEADS,
    "mamba": {**STATES, "linear_attn_config": {"time_step_rank": 5}},
    "rg_lru": {"linear_num_value_heads": 4, "linear_value_head_dim": 12},
    "short_conv": {},
}
# Those whose heads are divided, and what is kept of them between tokens.
DIVIDED = ("gated_delta_net", "kimi_delta_attention", "delta_net", "linear_attention", "gated_linear_attention")
DIVIDED += ("lightning_attention", "rg_lru")
MODELS = {
    "plain": ("tensor", {"attention_bias": True, "mlp_bias": True}),
    "normed": ("tensor", {"qk_norm": "rms_norm", "attn_output_gate": "query", "block_type": "sandwich_norm"}),
    "full norm": ("tensor", {"qk_norm": "rms_norm", "qk_norm_config.scope": "full", "tie_word_embeddings": True}),
    "one head of keys": ("tensor", {"num_key_value_heads": 1, "qk_norm": "rms_norm", "attn_output_gate": "query"}),
    "gates": ("tensor", {"attn_output_gate": "headwise", "gated_mlp": False, "hidden_act": "relu2"}),
    "sinks": ("tensor", {"attention_sinks": "all", "layer_types": ["sliding_attention"] * 3, "sliding_window": 4}),
    "biases": ("tensor", {"position_embedding_type": "alibi"}),
    "latent": ("tensor", {**RANKED, "attn_output_gate": "headwise", "attention_sinks": "all"}),
    "latent in groups": (
        "tensor",
        {
            **RANKED,
            "q_lora_rank": None,
            "num_key_value_heads": 2,
            "position_embedding_type": "none",
            "qk_rope_head_dim": 0,
        },
    ),
    "latent and experts": ("tensor", {**RANKED, **EXPERTS, "n_shared_experts": 1, "scoring_func": "sigmoid"}),
    "indexed": ("tensor", {**RANKED, **INDEXER, "layer_types": ["full_attention", *["indexed_attention"] * 2]}),
    "shared keys": ("tensor", {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 10}),
    **{name: ("tensor", {**linear(name), **RECURRENT[name]}) for name in RECURRENT},
    "recurrences beside attention": ("tensor", {**linear("mamba2", **HEADS), "layer_types": ["hybrid"] * 3}),
    "recurrences, latents and experts": (
        "tensor",
        {**RANKED, **EXPERTS, "n_shared_experts": 1, **linear("kimi_delta_attention", **HEADS)},
    ),
    "experts": ("tensor", {**EXPERTS, "n_shared_experts": 1}),
    "prediction layers": ("tensor", {**RANKED, **EXPERTS, "num_mtp_layers": 2}),
    "experts apart": ("expert", {**EXPERTS, "n_shared_experts": 1}),
}


@pytest.mark.parametrize("row", [row for group in ("mixer", "position", "embedding") for row in ROWS[group][1:]])
def test_every_rule_names_a_parameter_or_module(row):
    config = ZooConfig(**{**SIZES, **row})
    with torch.device("meta"):
        model = ZooForCausalLM(config)
    names = {name for name, _ in [*model.model.named_modules(), *model.model.named_parameters()]}
    for plan in (config.base_model_tp_plan, config.base_model_ep_plan or {}):
        for rule in plan:
            pattern = re.escape(rule).replace(r"\*", r"\d+")
            assert any(re.fullmatch(pattern, name) for name in names), rule


@pytest.mark.parametrize(
    ("flags", "split"),
    [
        ({"position_embedding_type": "alibi"}, {"layers.*.self_attn.q_proj": "colwise"}),
        ({"position_embedding_type": "relative"}, {"layers.*.self_attn.o_proj": "rowwise"}),
        ({"position_embedding_type": "transformer_xl"}, {"layers.*.self_attn.r_proj": "colwise"}),
        (
            {"hidden_size_per_layer_input": 7},
            {"per_layer_embeddings.embed_tokens_per_layer": "embedding_rowwise"},
        ),
        (
            linear("mamba2", [HYBRID, LINEAR, HYBRID], **STATES, **SHARED_BLOCKS),
            {"shared_blocks.*.self_attn.k_proj": "colwise", "shared_blocks.*.mlp.down_proj": "rowwise"},
        ),
    ],
)
def test_biases_tables_and_shared_blocks_are_split(flags, split):
    plan = ZooConfig(**{**EVEN, **flags}).base_model_tp_plan
    assert split.items() <= plan.items()


# What NeMo Automodel 0.7.0 translates (`translate_to_torch_parallel_style`); a plan without a rule for the embedding
# gets `rowwise_rep` there.
AUTOMODEL = {"colwise", "rowwise", "colwise_rep", "colwise_gather_output", "rowwise_rep", "sequence_parallel"}
AUTOMODEL |= {"replicated_with_grad_allreduce"}


@pytest.mark.parametrize("name", ["plain", "normed", "full norm", "gates", *RECURRENT, "recurrences beside attention"])
def test_plans_without_latents_and_experts_are_of_words_that_another_engine_knows(name):
    plan = ZooConfig(**{**EVEN, **MODELS[name][1]}).base_model_tp_plan
    assert plan.pop("embed_tokens") == "embedding_rowwise"
    assert plan and {*plan.values()} <= AUTOMODEL


@pytest.mark.parametrize("word", ["full_attention", "hybrid"])
@pytest.mark.parametrize("mechanism", LINEAR_MECHANISMS)
def test_a_rule_for_attention_names_no_recurrence(mechanism, word):
    """Both have a `q_proj` and an `o_proj`: each has rules of its own."""
    words = ["linear_attention", word, "linear_attention"]
    flags = EVEN | {"linear_attention_type": mechanism}
    flags |= {"linear_value_head_dim": 12} if mechanism != "short_conv" else {}
    config = ZooConfig(**flags, layer_types=words)
    with torch.device("meta"):
        model = ZooForCausalLM(config).model

    def named(part):
        rules = [rule for rule in config.base_model_tp_plan if f".{part}." in rule]
        patterns = [re.escape(rule).replace(r"\*", r"\d+") for rule in rules]
        return {name for name, _ in model.named_modules() if any(re.fullmatch(pattern, name) for pattern in patterns)}

    assert named("self_attn") == {f"layers.1.self_attn.{x}_proj" for x in "qkvo"}
    recurrent = {"0", "2"} | ({"1"} if word == "hybrid" else set())
    outputs = {name.split(".")[1] for name in named("linear_attn") if name.endswith("o_proj")}
    assert outputs == (recurrent if "product" not in mechanism else set())
    one_kind = ZooConfig(**flags, layer_types=["linear_attention"] * 3)
    assert not [rule for rule in one_kind.base_model_tp_plan if "self_attn" in rule]


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_compute_what_one_does(name, tmp_path):
    plan, flags = MODELS[name]
    model = ZooForCausalLM(ZooConfig(**{**EVEN, **flags}))
    randomize(model)
    if model.config.linear_attention_type is not None:
        # Of weights as large as that a recurrence magnifies the rounding of sums in another order.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.6)
    model.generation_config.eos_token_id = None
    model.eval().save_pretrained(tmp_path)
    tokens = torch.randint(1, 101, (2, 9))
    torch.save(tokens, tmp_path / "tokens.pt")
    worker = SUPPORT / "parallel_worker.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(worker), str(tmp_path), plan]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    with torch.no_grad():
        outputs = model(tokens, use_cache=True)
    torch.testing.assert_close(found["logits"], outputs.logits, rtol=2e-5, atol=2e-5)
    if name in RECURRENT:
        whole = cached_numbers(outputs.past_key_values)
        ways = [2 if name in DIVIDED or word == "full_attention" else 1 for word in model.config.layer_types]
        assert found["cached"] == [numbers // way for numbers, way in zip(whole, ways, strict=True)]
    model.train(model.config.num_mtp_layers > 0)(tokens, labels=tokens).loss.backward()
    model.eval()
    for key, gradient in found["gradients"].items():
        expected = model.get_parameter(key).grad
        if "indexer" in key:
            # It learns from a loss of its own only, which this model does not have.
            assert gradient is None and expected is None, key
            continue
        # A sum that misses a rank is wrong by a half.
        assert (gradient - expected).abs().max() <= 1e-3 * expected.abs().max(), key
    greedy = model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(found["sequence"], greedy)
    assert found["held"] < 0.9 * found["whole"]
    again = ZooForCausalLM.from_pretrained(tmp_path / "saved")
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


def rank_of_two(rank, folder, store, flags, state, tokens):
    """One of two processes made by a fork: what it computes of a model that it splits."""
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    model = ZooForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2)).train()
    # Two passes, whose gradients add up.
    for _ in range(2):
        outputs = model(tokens, labels=tokens)
        outputs.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    whole = {name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in gradients.items()}
    if rank == 0:
        torch.save({"loss": outputs.loss, "gradients": whole}, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_a_hybrid_of_two_ranks_has_the_gradients_of_one(tmp_path):
    """Heads of a recurrence and of attention split, one head of keys for both ranks; nothing is started again."""
    flags = {**EVEN, **linear("gated_delta_net", [LINEAR, FULL], **HEADS), "num_hidden_layers": 2}
    flags |= {"num_key_value_heads": 1, "attn_output_gate": "query", "linear_attn_config": {"gate_rank": 6}}
    model = ZooForCausalLM(ZooConfig(**flags)).train()
    randomize(model)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(1, 101, (2, 9))
    arguments = (str(tmp_path), str(tmp_path / "store"), flags, None, tokens)
    start_processes(rank_of_two, arguments, nprocs=2, start_method="fork")
    found = torch.load(tmp_path / "found.pt")
    for _ in range(2):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        assert (found["gradients"][name] - weight.grad).abs().max() <= 1e-3 * weight.grad.abs().max(), name


@pytest.mark.parametrize(
    ("flags", "ways", "message"),
    [
        ({"num_key_value_heads": 1}, 3, "3 ranks splits heads, and num_attention_heads=4 of layer 0 does not divide"),
        ({"num_attention_heads": 12, "num_key_value_heads": 4}, 6, "num_key_value_heads=4 of layer 0 does not divide"),
        (linear("gated_delta_net", **HEADS), 4, "linear_num_key_heads=2 of layer 0 does not divide into 4"),
        (linear("rg_lru", linear_num_value_heads=6, linear_value_head_dim=8), 4, "linear_num_value_heads=6 of layer 0"),
    ],
)
def test_heads_that_do_not_divide_are_refused(flags, ways, message):
    with torch.device("meta"):
        model = ZooForCausalLM(ZooConfig(**{**EVEN, "num_key_value_heads": 4, **flags}))
    with pytest.raises(ValueError, match=message):
        fit_to_ranks(model, DistributedConfig(tp_size=ways), object())


def test_an_indexer_cannot_learn_from_some_of_the_heads():
    flags = {**RANKED, **INDEXER, "layer_types": ["indexed_attention"] * 3, "indexer_loss_coef": 0.1}
    model = ZooForCausalLM(ZooConfig(**{**EVEN, **flags})).train()
    tokens = torch.randint(1, 101, (2, 9))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weight = model.model.layers[0].self_attn.kv_b_proj
        weight.weight = torch.nn.Parameter(distribute_tensor(weight.weight, mesh, [Shard(0)]))
        with pytest.raises(ValueError, match="indexer_loss_coef=0.1 .* tensor parallelism splits"):
            model(tokens, labels=tokens)
    finally:
        dist.destroy_process_group()


def test_recurrences_that_differ_in_numbers_have_a_plan():
    """What a recurrence is comes from its own layer where `per_layer_config` makes layers differ."""
    flags = {"layer_types": ["linear_attention"] * 2, "linear_attention_type": "gated_delta_net"}
    config = ZooConfig(num_hidden_layers=2, **flags, per_layer_config={1: {"linear_attn_config.output_norm": "none"}})
    assert config.is_heterogeneous and any("linear_attn" in rule for rule in config.base_model_tp_plan)
    with pytest.raises(ValueError, match="linear_num_key_heads=32 of layer 0"):
        check_heads(config, config.base_model_tp_plan, 3)
