"""Sparse layers: equal to transformers' own, to a slow reference, and to themselves under every implementation."""

import re

import pytest
import references_experts as slow
import torch
from layer_pairs import Alone, Pair, RoutedByAnother, sparse_layers, variants
from random_experts import SHARED, WIDTH, D, E, randomize, zoo_config
from random_models import is_here
from torch import nn
from transformers.models.deepseek_v4 import DeepseekV4Config, modeling_deepseek_v4

from configuration_zoo import ZooConfig, fields_experts
from conversion import family_of
from conversion.engine.registry import is_known
from modeling_zoo import ops_dispatch, ops_experts, ops_linear
from modeling_zoo.mlp_experts import EXPERTS
from modeling_zoo.mlp_routers import Router
from modeling_zoo.mlp_sparse import COMBINATIONS, SHARED_EXPERTS, SparseMLP

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


SIGMOID = {"expert_selection_fn": "sigmoid"}
# Besides the variants of the family files: what leaves a choice open there.
FURTHER = [
    ("cohere2_moe", 0, {"shared_expert_combination_strategy": "sum"}),
    ("cohere2_moe", 0, SIGMOID | {"shared_expert_combination_strategy": "average"}),
    ("cohere2_moe", 0, SIGMOID | {"norm_topk_prob": False, "shared_expert_combination_strategy": "sum"}),
    ("gpt_oss", 0, {"swiglu_limit": 1.5}),
    ("lfm2_moe", 0, {"use_expert_bias": False}),
    ("nemotron_h", 0, {"mlp_bias": True}),
    ("nemotron_h", 0, {"mlp_bias": True, "moe_latent_size": 16}),
]
CASES = [(*variant, {}) for variant in variants(lambda config: "sparse" in config.mlp_layer_types)]
CASES += [case for case in FURTHER if is_here(case[0])] + [("deepseek_v4", 0, {})]


def pair_of(case, folder, dtype=None):
    name, number, changes = case
    return deepseek_v4(dtype) if name == "deepseek_v4" else Pair(folder, name, number, dtype, **changes)


def deepseek_v4(dtype=None):
    """A layer that no file of a family describes yet."""
    sizes = {"n_routed_experts": E, "num_experts_per_tok": 3, "moe_intermediate_size": WIDTH}
    both = {"routed_scaling_factor": 1.5, "swiglu_limit": 0.5}
    config = DeepseekV4Config(hidden_size=D, **sizes, **both, experts_implementation="eager")
    theirs = modeling_deepseek_v4.DeepseekV4SparseMoeBlock(config, config.mlp_layer_types.index("moe"))
    router = {"scoring_func": "sqrtsoftplus", "use_score_correction_bias": True, "precision.router": "activation"}
    ours = zoo_config(**router, precision={"router_weights": "activation"}, n_shared_experts=1, **both)
    pair = Alone(randomize(theirs), SparseMLP(ours, 0))
    for layer in (pair.theirs, pair.ours) if dtype is not None else ():
        lower(layer, "e_score_correction_bias", dtype)
    return pair


def inputs_of(theirs, ours, dtype=torch.float32):
    """What the layer reads, and for some a second tensor that only its router reads."""
    width = ours.config.hidden_size
    return [torch.randn(3, 11, width).to(dtype) for _ in range(1 + isinstance(theirs, RoutedByAnother))]


def run(block, inputs):
    output = block(*inputs)
    return (output[0] if isinstance(output, tuple) else output).view(inputs[0].shape)


def distance(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


# -- against transformers ------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_equal_the_originals(case, tmp_path):
    pair = pair_of(case, tmp_path)
    for theirs, ours in sparse_layers(pair):
        inputs = inputs_of(theirs, ours)
        upstream = torch.randn_like(inputs[0])
        outputs, gradients = [], []
        for block in (theirs, ours):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            outputs.append(run(block, leaves))
            (outputs[-1] * upstream).sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        assert distance(outputs[1], outputs[0]) < 2e-6
        for found, wanted in zip(*reversed(gradients), strict=True):
            assert distance(found, wanted) < 5e-6

    tensors = pair.theirs.state_dict(keep_vars=True)
    wanted = pair.in_ours({key: torch.zeros_like(x) if x.grad is None else x.grad for key, x in tensors.items()})
    inside = [module for _, module in sparse_layers(pair)]
    names = {id(parameter): name for name, parameter in pair.ours.named_parameters()}
    for parameter in [parameter for module in inside for parameter in module.parameters()]:
        name = names[id(parameter)]
        assert parameter.grad.abs().sum() > 0, name
        assert distance(parameter.grad, wanted[name]) < 1e-5, name


def lower(module, stays, dtype=torch.bfloat16):
    """Another dtype, except for the tensors whose name matches `stays`."""
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not re.search(stays, key):
            tensor.data = tensor.data.to(dtype)


# Where the sum over experts or the bias is rounded at another place than here.
ROUNDED_ELSEWHERE = {"longcat_flash", "gpt_oss", "nemotron_h", "laguna", "minimax_m3_vl_text"}
# Families that scale the sum of the experts, where here the weights of the sum are scaled.
SCALED_BEHIND = {"laguna", "minimax_m3_vl_text"}
# A slow reference, in place of a class of transformers, says the numbers, not where they are rounded.
WITH_A_CLASS = [case for case in CASES if not (is_known(case[0]) and family_of(case[0]).config_class)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", WITH_A_CLASS, ids=str)
def test_bfloat16_rounds_where_the_original_does(case, tmp_path):
    for theirs, ours in sparse_layers(pair_of(case, tmp_path, torch.bfloat16)):
        routed = {}

        def note(module, args, output, routed=routed):
            routed["ours" if isinstance(module, Router) else "theirs"] = output

        routers = [module for module in theirs.modules() if re.search("Router|Gate$", type(module).__name__)]
        for module in (routers[0] if routers else theirs, ours.gate):
            module.register_forward_hook(note)
        inputs = inputs_of(theirs, ours, torch.bfloat16)
        with torch.no_grad():
            wanted, found = run(theirs, inputs), run(ours, inputs)
        assert found.dtype == torch.bfloat16
        _, our_weights, our_experts = routed["ours"]
        # Some routers only give logits, or, in older releases, the same things in another order.
        theirs_too = routed["theirs"] if isinstance(routed["theirs"], tuple) else ()
        if [tuple(output.shape) for output in theirs_too[1:]] == [tuple(our_experts.shape)] * 2:
            _, weights, experts = theirs_too
            order, our_order = experts.argsort(), our_experts.argsort()
            assert torch.equal(our_experts.gather(1, our_order), experts.gather(1, order))
            assert our_weights.dtype == weights.dtype
            our_weights, weights = our_weights.gather(1, our_order), weights.gather(1, order)
            if case[0] in SCALED_BEHIND:
                assert distance(our_weights, weights * ours.gate.scaling) < 2**-7
            else:
                assert torch.equal(our_weights, weights)
        if case[0] in ROUNDED_ELSEWHERE:
            assert distance(found, wanted) < 2**-6
        else:
            assert torch.equal(found, wanted)


# A flag of the family, and another value: the output must not be the same.
FLAGS_THAT_MATTER = [
    ("mixtral", 0, {"norm_topk_prob": False, "router.norm_topk_eps": None}),
    ("mixtral", 0, {"hidden_act": "gelu"}),
    ("deepseek_v3", 0, {"routed_scaling_factor": 2.4}),
    ("deepseek_v3", 0, {"scoring_func": "softmax"}),
    ("deepseek_v3", 0, dict.fromkeys(("n_group", "topk_group", "router.group_score", "router.group_mask_value"))),
    ("deepseek_v3", 0, {"topk_group": 3}),
    ("deepseek_v3", 0, {"router.group_score": "max"}),
    ("deepseek_v2", 0, {"router.group_score": "top2_sum"}),
    ("gpt_oss", 0, {"swiglu_limit": None}),
    ("gpt_oss", 0, {"swiglu_config.alpha": None}),
    ("gpt_oss", 0, {"swiglu_config.up_offset": None}),
    ("gpt_oss", 0, {"router.score_after_topk": False, "norm_topk_prob": False}),
    ("deepseek_v4", 0, {"swiglu_limit": 0.6}),
    ("deepseek_v4", 0, {"scoring_func": "sigmoid"}),
    ("llama4_text", 0, {"router.weight_on_input": False}),
    ("longcat_flash", 0, {"zero_expert_type": "zero"}),
    ("cohere2_moe", 0, {"shared_expert_combination_strategy": "sum"}),
    ("gemma4_text", 0, {"router.input_multiplier": 1.0}),
    ("gemma4_text", 0, {"norm_eps": 1e-1}),
    ("lfm2_moe", 0, {"router.norm_topk_eps": 0.1}),
    ("phimoe", 0, {"router.sparsemixer_jitter_eps": 0.3}),
]


@pytest.mark.parametrize(
    ("name", "number", "changes"), FLAGS_THAT_MATTER, ids=[f"{n}-{next(iter(c))}" for n, _, c in FLAGS_THAT_MATTER]
)
def test_every_flag_changes_the_output(name, number, changes, tmp_path):
    further = {"swiglu_limit": 1.5} if name == "gpt_oss" else {}
    theirs, ours = sparse_layers(pair_of((name, number, further), tmp_path))[0]
    values = ours.config.to_dict() | changes
    index = ours.config.mlp_layer_types.index("sparse")
    other = SparseMLP(ZooConfig.from_dict(values | {"experts_implementation": "eager"}), index).eval()
    other.load_state_dict(ours.state_dict())
    inputs = inputs_of(theirs, ours)
    with torch.no_grad():
        wanted = run(theirs, inputs)
        assert distance(run(ours, inputs), wanted) < 2e-6
        assert distance(run(other, inputs), wanted) > 1e-3


# -- against the slow reference: combinations no published model has -----------------------------------------------

LAYERS = {
    "gated": {},
    "plain": {"gated_mlp": False, "hidden_act": "relu2"},
    "gated_biases": {"expert_bias": True, "mlp_bias": True, "n_shared_experts": 1},
    "plain_biases_shared": {
        **{"gated_mlp": False, "hidden_act": "relu2", "expert_bias": True, "mlp_bias": True},
        **{"n_shared_experts": 2, "shared_expert_gate": True},
    },
    "clamped": {"swiglu_limit": 0.4, "n_shared_experts": 1},
    "clamped_behind": {
        **{"swiglu_limit": 0.4, "n_shared_experts": 1, "hidden_act": "relu2"},
        **{"swiglu_config.clamp_behind_activation": True, "swiglu_config.shared_limit": 0.2},
    },
    "shared_alone_unclamped": {"swiglu_limit": 0.4, "n_shared_experts": 1, "swiglu_config.shared_limit": 0},
    "normed_sum": {"shared_expert_intermediate_size": SHARED, "shared_expert_combination_strategy": "normed_sum"},
    "normed_sum_gate_latent": {
        **{"n_shared_experts": 2, "shared_expert_gate": True, "moe_latent_size": 20, "norm_eps": 1e-3},
        **{"shared_expert_combination_strategy": "normed_sum", "zero_expert_num": 5},
    },
    "clamped_alpha_offset": {
        **{"swiglu_limit": 0.6, "swiglu_config.alpha": 1.7, "swiglu_config.up_offset": 0.5, "expert_bias": True},
        **{"shared_expert_intermediate_size": SHARED, "shared_expert_combination_strategy": "average"},
    },
    "alpha_alone": {"swiglu_config.alpha": 2.5, "hidden_act": "silu"},
    "latent": {"moe_latent_size": 20, "mlp_bias": True, "router.input_norm": True, "router.bias": True},
    "latent_identity": {"moe_latent_size": 20, "zero_expert_num": 5, "n_shared_experts": 1},
    "zero": {"zero_expert_num": 5, "zero_expert_type": "zero", "use_score_correction_bias": True},
    "identity_groups_gate": {
        **{"zero_expert_num": 4, "scoring_func": "sigmoid", "n_group": 4, "topk_group": 2},
        **{"shared_expert_intermediate_size": SHARED, "shared_expert_gate": True},
    },
    "identity_plain_biases": {"zero_expert_num": 9, "gated_mlp": False, "hidden_act": "relu2", "expert_bias": True},
    "weight_on_input": {
        **{"router.weight_on_input": True, "expert_bias": True, "swiglu_limit": 0.5},
        **{"n_shared_experts": 1, "shared_expert_combination_strategy": "average", "router.per_expert_scale": True},
    },
    "weight_on_input_latent": {"router.weight_on_input": True, "moe_latent_size": 20, "scoring_func": "sigmoid"},
    "sparsemixer": {"scoring_func": "sparsemixer", "router.sparsemixer_jitter_eps": 0.4, "n_shared_experts": 1},
    "one_expert": {"num_experts": 1, "num_experts_per_tok": 1, "scoring_func": "sigmoid", "norm_topk_prob": False},
    "all_experts": {
        "num_experts_per_tok": E,
        "precision.router": "float32_weight",
        "precision.router_weights": "activation",
    },
}


def layer_of(name, implementation="eager"):
    return randomize(SparseMLP(zoo_config(implementation, **LAYERS[name]), 0)).eval()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_combination_equals_the_slow_reference(name, implementation):
    layer = layer_of(name, implementation)
    hidden_states = torch.randn(2, 7, D)
    wanted = slow.sparse_mlp(hidden_states, layer.state_dict(), layer.config)
    assert distance(layer(hidden_states), wanted) < 2e-6


@pytest.mark.parametrize("name", LAYERS)
def test_implementations_agree_in_output_and_gradient(name):
    hidden_states, upstream = torch.randn(2, 40, D), torch.randn(2, 40, D)
    reference = None
    for implementation in IMPLEMENTATIONS:
        layer = layer_of(name, implementation)
        if reference is not None:
            layer.load_state_dict(reference[0])
        x = hidden_states.clone().requires_grad_()
        output = layer(x)
        (output * upstream).sum().backward()
        found = {"output": output, "input": x.grad} | {key: p.grad for key, p in layer.named_parameters()}
        if reference is None:
            reference = layer.state_dict(), found
            assert all(gradient.abs().sum() > 0 for gradient in found.values())
        for key, tensor in found.items():
            assert distance(tensor, reference[1][key]) < 1e-5, (implementation, key)


@pytest.mark.parametrize(
    "name", ["gated", "gated_biases", "plain", "clamped", "identity_groups_gate", "weight_on_input"]
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_float32_up_to_rounding(name, implementation):
    flags = LAYERS[name] | {"precision.router": "float32_linear"}
    layer = randomize(SparseMLP(zoo_config(implementation, **flags), 0)).eval()
    for tensor in layer.state_dict().values():
        tensor.copy_(tensor.bfloat16())
    hidden_states = torch.randn(2, 7, D).bfloat16()
    exact = slow.sparse_mlp(hidden_states, layer.state_dict(), layer.config)
    lower(layer, "e_score_correction_bias")
    found = layer(hidden_states)
    assert found.dtype == torch.bfloat16
    assert distance(found, exact) < 2**-6


# (hidden_size, moe_intermediate_size): rows a product in groups takes in any dtype, in some, in none.
WIDTHS = [(40, 24), (40, 10), (36, 16), (40, 21), (33, 7)]
EXACTNESS = {torch.float64: 1e-6, torch.float32: 2e-6, torch.float16: 2**-8, torch.bfloat16: 2**-6}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", EXACTNESS, ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize(
    "name", ["gated", "plain", "gated_biases", "clamped_alpha_offset", "latent", "latent_identity"]
)
def test_any_width_in_any_dtype_equals_the_slow_reference(name, widths, dtype):
    """One token and many, with a gradient and without."""
    hidden, width = widths
    flags = LAYERS[name] | {"hidden_size": hidden, "moe_intermediate_size": width, "precision.router": "float32_linear"}
    latent = {"moe_latent_size": hidden - 3} if "moe_latent_size" in LAYERS[name] else {}
    layer = randomize(SparseMLP(zoo_config("grouped_mm", head_dim=8, **flags | latent), 0)).eval()
    for tensor in layer.state_dict().values():
        tensor.copy_(tensor.to(dtype))
    lower(layer, "e_score_correction_bias", dtype)
    for count in (1, 14):
        hidden_states = torch.randn(1, count, hidden).to(dtype)
        exact = slow.sparse_mlp(hidden_states, layer.state_dict(), layer.config)
        with torch.no_grad():
            assert distance(layer(hidden_states), exact) < EXACTNESS[dtype]
        found = layer(hidden_states.requires_grad_())
        assert distance(found, exact) < EXACTNESS[dtype]
        found.sum().backward()
        assert torch.isfinite(hidden_states.grad).all() and hidden_states.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["gated", "plain_biases_shared", "latent_identity"])
def test_a_width_no_group_takes_in_a_graph_and_without_data(name):
    """A graph has no numbers to choose experts by, nor has the meta device."""
    layer = randomize(SparseMLP(zoo_config("grouped_mm", **LAYERS[name] | {"moe_intermediate_size": 21}), 0)).eval()
    hidden_states = torch.randn(2, 7, D)
    with torch.no_grad():
        wanted = layer(hidden_states)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert distance(compiled(hidden_states), wanted) < 2e-6
        assert layer.to("meta")(hidden_states.to("meta")).shape == wanted.shape


def test_the_registries_cover_what_a_config_can_say():
    assert set(EXPERTS) == {(gated, bias) for gated in (True, False) for bias in (True, False)}
    assert set(SHARED_EXPERTS) == {True, False}
    assert set(COMBINATIONS) == set(fields_experts.SHARED_EXPERT_COMBINATIONS)


@pytest.mark.parametrize(("gated", "bias"), EXPERTS)
def test_expert_parameters_are_in_the_canonical_layout(gated, bias):
    flags = {"gated_mlp": gated, "hidden_act": "silu", "expert_bias": bias}
    experts = SparseMLP(zoo_config(**flags)).experts
    into, width = ("gate_up_proj", 2 * WIDTH) if gated else ("up_proj", WIDTH)
    shapes = {into: (E, width, D), "down_proj": (E, D, WIDTH)}
    if bias:
        shapes |= {f"{into}_bias": (E, width), "down_proj_bias": (E, D)}
    assert {name: tuple(parameter.shape) for name, parameter in experts.named_parameters()} == shapes
    assert (experts.has_gate, experts.has_bias) == (gated, bias)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tokens_that_only_visit_zero_experts_cost_nothing_and_train(implementation):
    layer = layer_of("identity_groups_gate", implementation)
    layer.shared_experts = None
    weights, experts = torch.rand(5, 3), torch.full((5, 3), E)
    tokens = torch.randn(5, D, requires_grad=True)
    output = layer.run_routed(tokens, weights, experts)
    torch.testing.assert_close(output, tokens * weights.sum(-1, keepdim=True))
    output.sum().backward()
    assert tokens.grad is not None


@pytest.mark.parametrize("name", ["zero", "latent_identity", "identity_groups_gate"])
def test_zero_experts_in_a_compiled_graph(name, monkeypatch):
    """A graph's shapes are fixed, so there every slot runs an expert; the result is the same."""
    layer = layer_of(name, "grouped_mm")
    hidden_states = torch.randn(2, 7, D)
    wanted = layer(hidden_states)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert distance(layer(hidden_states), wanted) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gated", "gated_biases", "plain", "clamped"])
def test_the_experts_of_one_token_are_the_grouped_ones_to_the_last_bit(name, dtype, monkeypatch):
    layer = layer_of(name, "grouped_mm").experts.to(dtype)
    ran, real = [], ops_experts.loop_single_token
    monkeypatch.setattr(ops_experts, "loop_single_token", lambda *args: ran.append(1) or real(*args))
    for weights_dtype in (dtype, torch.float32):
        token, weights = torch.randn(1, layer.hidden_dim).to(dtype), torch.rand(1, 2).to(weights_dtype)
        ids = torch.randperm(layer.num_experts)[:2][None]
        expected, before = layer(token, ids, weights).detach(), len(ran)
        with torch.no_grad():
            assert torch.equal(layer(token, ids, weights), expected) and len(ran) == before + 1
            layer(token.expand(2, -1), ids.expand(2, -1), weights.expand(2, -1))
            layer.config._experts_implementation = "eager"
            assert distance(layer(token, ids, weights), expected) < (2e-6 if dtype == torch.float32 else 2**-6)
            layer.config._experts_implementation = "grouped_mm"
        assert len(ran) == before + 1


@pytest.fixture
def float32_loops(monkeypatch):
    """A CPU that emulates bfloat16, whatever this one does, and every product large enough; the experts that ran."""
    monkeypatch.setattr(ops_dispatch, "is_emulated", lambda dtype: dtype == torch.bfloat16)
    for module, name in (
        (ops_linear, "MIN_ROWS"),
        (ops_linear, "MIN_PRODUCTS"),
        (ops_experts, "MIN_SHARING"),
        (ops_experts, "MIN_PRODUCTS"),
    ):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(ops_experts, "MAX_SHARING", 3)
    ran, real = [], ops_experts.fp32_loop
    monkeypatch.setattr(ops_experts, "fp32_loop", lambda *args: ran.append(len(args[1])) or real(*args))
    return ran


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_the_loop_in_float32_equals_the_slow_reference(name, float32_loops):
    layer = layer_of(name, "grouped_mm")
    tokens, weights = torch.randn(40, layer.experts.hidden_dim), torch.rand(40, 2)
    ids = torch.stack([torch.randperm(max(layer.num_experts, 2))[:2] for _ in range(40)]) % layer.num_experts
    wanted = layer.experts(tokens, ids, weights)
    assert not float32_loops
    assert distance(ops_experts.fp32_loop(layer.experts, tokens, ids, weights), wanted) < 2e-6


@pytest.mark.parametrize("name", ["gated", "gated_biases", "plain", "clamped", "identity_groups_gate"])
def test_experts_in_float32_are_the_grouped_ones_up_to_rounding(name, float32_loops):
    flags = LAYERS[name] | {"precision.router": "float32_linear"}
    layer = randomize(SparseMLP(zoo_config("grouped_mm", **flags), 0)).eval()
    for tensor in layer.state_dict().values():
        tensor.copy_(tensor.bfloat16())
    hidden_states = torch.randn(2, 40, D).bfloat16()
    exact = slow.sparse_mlp(hidden_states, layer.state_dict(), layer.config)
    lower(layer, "e_score_correction_bias")
    assert distance(layer(hidden_states), exact) < 2**-6 and not float32_loops
    with torch.no_grad():
        assert distance(layer(hidden_states), exact) < 2**-6
        assert len(float32_loops) == 1
        layer.config._experts_implementation = "eager"
        layer(hidden_states)
    assert len(float32_loops) == 1


@torch.no_grad()
def test_an_id_past_the_last_is_nobodys_in_float32_either():
    layer = layer_of("gated").experts
    tokens, weights = torch.randn(4, D), torch.rand(4, 2)
    ids = torch.tensor([[0, 3], [E, 3], [2, E], [E, E]])
    torch.testing.assert_close(ops_experts.fp32_loop(layer, tokens, ids, weights), layer(tokens, ids, weights))


def test_an_expert_id_past_the_last_is_nobodys():
    experts = layer_of("gated").experts
    tokens, weights = torch.randn(4, D), torch.rand(4, 2)
    ids = torch.tensor([[0, 3], [E, 3], [2, E], [E, E]])
    wanted = experts(tokens, ids.clamp(max=E - 1), weights.masked_fill(ids == E, 0.0))
    torch.testing.assert_close(experts(tokens, ids, weights), wanted)


def test_jitter_scales_the_input_of_router_and_experts_in_training_only():
    layer = randomize(SparseMLP(zoo_config(router={"jitter_noise": 0.3}, n_shared_experts=1)))
    hidden_states, seen = torch.randn(2, 7, D), {}
    layer.gate.register_forward_pre_hook(lambda module, args: seen.update(gate=args[0]))
    layer.experts.register_forward_pre_hook(lambda module, args: seen.update(experts=args[0]))
    layer.shared_experts.register_forward_pre_hook(lambda module, args: seen.update(shared=args[0]))
    before = hidden_states.clone()
    layer.train()(hidden_states)
    ratio = seen["gate"] / hidden_states.flatten(0, 1)
    assert torch.equal(seen["gate"], seen["experts"]) and torch.equal(hidden_states, before)
    assert torch.equal(seen["shared"], hidden_states.flatten(0, 1))
    assert 0.7 <= ratio.min() < 0.75 and 1.25 < ratio.max() <= 1.3
    layer.eval()(hidden_states)
    assert torch.equal(seen["gate"], hidden_states.flatten(0, 1))


def test_an_implementation_that_would_drop_the_clamp_is_refused():
    with pytest.raises(ValueError, match="'sonicmoe' ignores swiglu_limit"):
        layer_of("clamped", "sonicmoe")(torch.randn(1, 2, D))


def test_initialize_reaches_every_tensor():
    layer = SparseMLP(zoo_config(expert_bias=True, use_score_correction_bias=True))
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.fill_(torch.nan)
    for module in layer.modules():
        if hasattr(module, "initialize"):
            module.initialize(0.02)
    state = layer.state_dict()
    assert state["experts.gate_up_proj"].std().item() == pytest.approx(0.02, rel=0.1)
    assert state["experts.down_proj"].std().item() == pytest.approx(0.02, rel=0.1)
    assert not state["experts.gate_up_proj_bias"].any() and not state["experts.down_proj_bias"].any()


def test_shared_experts_are_a_plain_mlp_without_the_experts_activation():
    """Their parameters carry the names of a dense MLP, whatever the activation."""
    for flags in ({}, {"swiglu_config.alpha": 1.7, "swiglu_limit": 1.0}):
        shared = SparseMLP(zoo_config(n_shared_experts=2, **flags)).shared_experts
        names = {name for name, _ in shared.named_parameters()}
        assert names == {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}
        assert shared.up_proj.out_features == 2 * WIDTH and isinstance(shared, nn.Module)
