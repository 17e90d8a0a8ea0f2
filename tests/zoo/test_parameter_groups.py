"""Groups of parameters for optimizers, Muon against torch's, and muP: the coordinate check over widths."""

import copy

import pytest
import torch

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, get_decay_parameter_names
from zoo.training import MuonAdamW, mup_config, parameter_groups, scale_width

LINEAR, FULL = "linear_attention", "full_attention"
BASE = {
    "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 3, "head_dim": 16, "num_attention_heads": 4,
    "intermediate_size": 160, "max_position_embeddings": 64,
}  # fmt: skip
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
NETS = {
    "llama": {},
    "moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "router_aux_loss_coef": 0.01},
    "latent": {"attention_type": "latent", **LATENT},
    "delta": {"linear_attention_type": "gated_delta_net", "layer_types": [LINEAR, LINEAR, FULL], **DELTA},
}


def make(net="llama", **fields):
    torch.manual_seed(0)
    return ZooForCausalLM(ZooConfig(**{**BASE, **NETS[net], **fields}))


def group_of(groups, parameter):
    (found,) = [group for group in groups if any(parameter is one for one in group["params"])]
    return found


def test_every_parameter_is_in_one_group_and_decays_as_the_model_says():
    model = make("moe", norm_type="layer_norm", attention_bias=True)
    model.lm_head.weight.requires_grad = False
    groups = parameter_groups(model, learning_rate=0.1, weight_decay=0.2)
    decayed = set(get_decay_parameter_names(model))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = group_of(groups, parameter)
            assert (group["lr"], group["weight_decay"]) == (0.1, 0.2 if name in decayed else 0.0), name
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) - 1


def test_muon_turns_the_matrices_of_layers():
    model = make("moe")
    groups = parameter_groups(model, learning_rate=0.1, muon=True, muon_learning_rate=0.02)
    turned = {name for name, value in model.named_parameters() if group_of(groups, value)["use_muon"]}
    kinds = {name.split(".", 3)[-1] for name in turned}
    assert kinds == {
        *(f"self_attn.{x}_proj.weight" for x in "qkvo"), "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
    }  # fmt: skip
    assert {group["lr"] for group in groups if group["use_muon"]} == {0.02}


def test_rates_follow_the_width_of_what_a_matrix_reads():
    model = make(
        "moe", **{name: 4 * BASE[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")}
    )
    base = ZooConfig(**{**BASE, **NETS["moe"]})
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, base=base)
    layer = model.model.layers[1]
    for parameter, rate in (
        (layer.self_attn.q_proj.weight, 0.25), (layer.mlp.gate.weight, 0.25), (layer.mlp.experts.gate_up_proj, 0.25),
        # As wide in both.
        (layer.mlp.experts.down_proj, 1.0),
        (model.model.embed_tokens.weight, 1.0), (model.lm_head.weight, 1.0), (layer.attn_norm.weight, 1.0),
    ):  # fmt: skip
        group = group_of(groups, parameter)
        assert group["lr"] == rate
        assert group["weight_decay"] * group["lr"] == pytest.approx(0.1 if parameter.ndim > 1 else 0)
    groups = parameter_groups(model, learning_rate=1.0, base=base, muon=True)
    assert group_of(groups, layer.self_attn.q_proj.weight)["lr"] == 0.5
    with pytest.raises(ValueError, match="differ in more than widths; only one has"):
        parameter_groups(model, base=ZooConfig(**BASE))


def test_a_config_is_scaled_to_a_width():
    config = scale_width(ZooConfig(**{**BASE, **NETS["delta"], "num_key_value_heads": 1}), 128)
    assert (config.hidden_size, config.num_attention_heads, config.head_dim, config.intermediate_size) == (
        128,
        8,
        16,
        320,
    )
    assert (config.num_key_value_heads, config.linear_num_value_heads, config.linear_value_head_dim) == (1, 8, 16)
    with pytest.raises(ValueError, match="num_attention_heads=4 is 4 / 64 of the width, which makes no whole number"):
        scale_width(config.__class__(**BASE), 72)
    with pytest.raises(ValueError, match="tie_word_embeddings=True: muP"):
        mup_config(ZooConfig(**BASE, tie_word_embeddings=True), 32)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_muon_is_torch_s(shape):
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs, experts = copy.deepcopy(ours), torch.nn.Parameter(torch.stack([ours.detach(), torch.randn(shape)]))
    start = ours.detach().clone()
    groups = [{"params": [ours, experts], "use_muon": True}]
    optimizer = MuonAdamW(groups, lr=0.02, weight_decay=0.1)
    torch_s = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient, gradient.clone()
        experts.grad = torch.stack([gradient, torch.randn(shape)])
        optimizer.step()
        torch_s.step()
    torch.testing.assert_close(ours, theirs)
    # A product of a batch rounds otherwise in bfloat16.
    moved, alone = (experts[0] - start).flatten(), (ours - start).flatten()
    assert torch.cosine_similarity(moved, alone, dim=0) > 0.999
    assert (moved.norm() / alone.norm()).item() == pytest.approx(1, abs=0.01)


def test_the_others_learn_by_torch_s_adamw():
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(5, 7))
    theirs = copy.deepcopy(ours)
    optimizer = MuonAdamW([ours], lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))
    torch_s = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))
    for _ in range(5):
        ours.grad = torch.randn(5, 7)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        torch_s.step()
    torch.testing.assert_close(ours, theirs)


def changes(net: str, width: int, way: str) -> tuple[float, float]:
    """(mean change of the last hidden states, of the logits) by four steps of Adam at one learning rate."""
    config = scale_width(ZooConfig(**{**BASE, **NETS[net]}), width)
    torch.manual_seed(0)
    model = ZooForCausalLM(mup_config(config, 64) if way == "mup" else config)
    groups = parameter_groups(model, 2**-7, weight_decay=0.0, base=64 if way == "mup" else None)
    optimizer = torch.optim.AdamW(groups)
    batches = torch.randint(0, 256, (5, 4, 64), generator=torch.Generator().manual_seed(0)) // 3

    def states():
        with torch.no_grad():
            output = model.eval()(input_ids=batches[0], output_hidden_states=True, use_cache=False)
        model.train()
        return output.hidden_states[-2], output.logits

    before = states()
    for batch in batches[1:]:
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuple((after - one).abs().mean().item() for after, one in zip(states(), before, strict=True))


@pytest.mark.parametrize(
    ("net", "width"),
    [("llama", 256), *(pytest.param(net, 512, marks=pytest.mark.long) for net in NETS)],
)
def test_the_coordinate_check(net, width):
    """Under muP, hidden states and logits move as far at any width; in the standard way further."""
    narrow, wide = changes(net, 64, "mup"), changes(net, width, "mup")
    assert all(0.6 < after / before < 1.5 for before, after in zip(narrow, wide, strict=True)), (narrow, wide)
    narrow, wide = changes(net, 64, "standard"), changes(net, width, "standard")
    assert wide[0] / narrow[0] > 2
