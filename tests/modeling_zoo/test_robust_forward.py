"""What works with one concept works with all: every norm, block and mixer in every dtype, and in the ways people use
Llama."""

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from combinations import FULL, HEADS, ROWS, SIZES, STATES, linear
from huggingface_hub.errors import StrictDataclassError
from random_models import randomize
from transformers import DynamicCache, StaticCache
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from configuration_zoo import ZooConfig
from configuration_zoo.fields_linear import CHOICES, LINEAR_MECHANISMS
from modeling_zoo import ZooForCausalLM

# Largest difference to float32 with the same weights, relative to the largest logit.
ROUNDING = {torch.float64: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.5}


def model_of(fields):
    """A model with every parameter random; None for a mixture that the config refuses."""
    try:
        config = ZooConfig(**{**SIZES, **fields})
    except (StrictDataclassError, ValueError):
        return None
    torch.manual_seed(0)
    model = ZooForCausalLM(config)
    randomize(model)
    return model.eval()


def some_tokens():
    return torch.randint(6, 101, (2, 11), generator=torch.Generator().manual_seed(1))


def distance(found, wanted):
    return ((found.double() - wanted.double()).abs().max() / wanted.abs().max()).item()


def named(rows):
    return [pytest.param(row, id=" ".join(map(str, row.values())) or "default") for row in rows]


BLOCKS = {"linear_num_value_heads": 4, "linear_value_head_dim": 12}
# Every mixer and every kind of positions, every recurrence on its own, no mixer at all.
ALONE = {"gated_delta_net": linear("gated_delta_net", ["linear_attention"] * 3, **HEADS)}
ALONE["rg_lru"] = linear("rg_lru", ["linear_attention"] * 3, **BLOCKS)
ALONE |= {kind: linear(kind, ["linear_attention"] * 3, **STATES) for kind in ("mamba", "mamba2")}
ALONE["short_conv"] = linear("short_conv", ["conv"] * 3)
ALONE["mlp_only"] = {"block_type": "mlp_only"}
MODELS = {f"{group} {index}": row for group in ("mixer", "position") for index, row in enumerate(ROWS[group])} | ALONE
EVERY = {f"{group} {index}": row for group in ROWS if group != "stray" for index, row in enumerate(ROWS[group])} | ALONE
CAUSAL = [name for name, row in MODELS.items() if "use_bidirectional_attention" not in row]


# Without draws, which a layer that is computed again repeats only where torch keeps its state of the generator.
QUIET = {"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0}
# What layers leave for later ones, or for the loss, besides the stream.
PASSED_ON = ("block_type", "num_kv_shared_layers", "indexer_loss_coef", "router_aux_loss_coef")


def logits_match(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-5 * max(10.0, wanted.abs().max().item()))


# -- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(17)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["", "precision.residual_in_fp32"])
@pytest.mark.parametrize("norm", named(ROWS["norm"]))
@pytest.mark.parametrize("block", named(ROWS["block"]))
def test_every_norm_in_every_block_in_every_dtype(block, norm, wide, dtype):
    model, tokens = model_of({**block, **norm, "precision.residual_in_fp32": wide}), some_tokens()
    if model is None:
        return
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    wanted = model(tokens).logits
    model.to(dtype)
    found = model(tokens, labels=tokens)
    assert found.logits.dtype == dtype and distance(found.logits, wanted) < ROUNDING[dtype]
    found.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    with torch.no_grad():
        begun = model(tokens[:, :-1], use_cache=True)
        step = model(tokens[:, -1:], past_key_values=begun.past_key_values)
    assert distance(step.logits, found.logits[:, -1:]) < ROUNDING[dtype]


@pytest.mark.sampled(17)
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_padding_is_hidden_in_every_dtype(backend, dtype, name):
    """Rows that see nothing at all leave no NaN in those that see something."""
    model, tokens = model_of(EVERY[name]), some_tokens()
    try:
        model.set_attn_implementation(backend)
    except ValueError as refusal:
        assert backend == "sdpa" and "use one of" in str(refusal)
        return
    model.to(dtype)
    mask = torch.ones(2, 14, dtype=torch.long)
    mask[:, :3] = 0
    # Patterns of 2019 and chunks count slots, padding too.
    exact = model.config.sparse_attention_pattern is None and "chunked_attention" not in model.config.layer_types
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = model(torch.cat((tokens[:, :3], tokens), 1), attention_mask=mask, position_ids=positions).logits[:, 3:]
    assert not padded.isnan().any()
    kept = [index for index in range(101) if index not in (model.config.suppressed_token_ids or ())]
    if exact:
        assert distance(padded[..., kept], model(tokens).logits[..., kept]) < ROUNDING[dtype]


# -- caches that the caller made -------------------------------------------------------------------------------------

CACHES = {
    "DynamicCache()": lambda config: DynamicCache(),
    "DynamicCache(config)": lambda config: DynamicCache(config=config),
    "StaticCache(config)": lambda config: StaticCache(config=config, max_cache_len=16),
}


def compresses(config):
    """Whether layers keep entries for windows of tokens, in a cache that grows and does not go back."""
    return any("compressed" in layer_type for layer_type in config.layer_types)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("kind", CACHES)
@torch.no_grad()
def test_a_cache_of_the_caller_s_own(kind, name):
    """transformers' own classes, handed to the model itself: a prompt, tokens, several at once."""
    model, tokens = model_of(MODELS[name]), some_tokens()
    wanted, cache, found = model(tokens).logits, CACHES[kind](model.config), []
    if kind == "StaticCache(config)" and compresses(model.config):
        with pytest.raises(ValueError, match="which has no cache of fixed size"):
            model(tokens, past_key_values=cache, use_cache=True)
        return
    for part in tokens.split([5, 1, 1, 4], dim=1):
        outputs = model(part, past_key_values=cache, use_cache=True)
        assert outputs.past_key_values is cache
        found.append(outputs.logits)
    logits_match(torch.cat(found, 1), wanted)
    assert cache.get_seq_length() == tokens.shape[1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("own", [True, False], ids=["the model's cache", "DynamicCache(config)"])
def test_a_cache_from_inference_mode_goes_on_outside_of_it(own, name):
    """Without gradients, and with them."""
    model, tokens = model_of(MODELS[name]), some_tokens()
    with torch.no_grad():
        wanted = model(tokens).logits
    for recording in (torch.no_grad, torch.enable_grad):
        cache = None if own else DynamicCache(config=model.config)
        with torch.inference_mode():
            for part in tokens[:, :7].split([6, 1], dim=1):
                cache = model(part, past_key_values=cache, use_cache=True).past_key_values
        with recording():
            rest = tokens[:, 7:].split([1, 3], dim=1)
            found = [model(part, past_key_values=cache, use_cache=True).logits for part in rest]
        logits_match(torch.cat(found, 1).detach(), wanted[:, 7:])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_a_stack_without_a_mixer_generates(options):
    """Nothing is cached, and tokens are counted nevertheless."""
    model, tokens = model_of(ALONE["mlp_only"]), some_tokens()
    arguments = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0} | options
    whole = model.generate(tokens, use_cache=False, **{**arguments, "cache_implementation": None})
    assert torch.equal(model.generate(tokens, **arguments), whole)


# -- masks and devices -----------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_mask_longer_than_the_tokens_is_read_as_far_as_they_go(name):
    """As Llama's: of a mask for tokens to come, the columns of those at hand count; over a cache too."""
    model, tokens = model_of(MODELS[name]), some_tokens()
    mask = torch.ones(2, 15, dtype=torch.long)
    mask[0, :3] = mask[:, 11:] = 0
    counted = mask[:, :11].bool()
    wanted = model(tokens, attention_mask=mask[:, :11]).logits
    assert name == "mlp_only" or not torch.equal(wanted, model(tokens).logits)
    logits_match(model(tokens, attention_mask=mask, use_cache=False).logits[counted], wanted[counted])
    if model.config.use_bidirectional_attention:
        return
    for kind in CACHES:
        if kind == "StaticCache(config)" and compresses(model.config):
            continue
        cache, found = CACHES[kind](model.config), []
        for part in tokens.split([6, 1, 4], dim=1):
            found.append(model(part, attention_mask=mask, past_key_values=cache, use_cache=True).logits)
        logits_match(torch.cat(found, 1)[counted], wanted[counted])


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", EVERY)
def test_shapes_without_data(name):
    """A forward on the meta device: alone, with a mask, with labels, over a cache; in float32 and bfloat16."""
    model, tokens = model_of(EVERY[name]), some_tokens().to("meta")
    for dtype in (torch.float32, torch.bfloat16):
        model.to("meta", dtype)
        for arguments in ({}, {"use_cache": False}, {"attention_mask": torch.ones_like(tokens)}, {"labels": tokens}):
            assert model(tokens, **arguments).logits.shape == (2, 11, 101)
        if not model.config.use_bidirectional_attention:
            cache = model(tokens, use_cache=True).past_key_values
            assert model(tokens[:, :2], past_key_values=cache).logits.shape == (2, 2, 101)


@pytest.mark.parametrize("shape", [(0, 11), (2, 0)], ids=str)
@pytest.mark.parametrize("field", ["input_ids", "inputs_embeds"])
def test_no_token_at_all_is_refused_in_a_sentence(field, shape):
    model = model_of({})
    given = torch.zeros(shape, dtype=torch.long)
    given = given if field == "input_ids" else model.get_input_embeddings()(given)
    with pytest.raises(ValueError, match=rf"{field} of shape \({shape[0]}, {shape[1]}.* hold no token"):
        model(**{field: given})


# -- checkpointing ---------------------------------------------------------------------------------------------------


@pytest.mark.sampled(11)
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", ""])
def test_checkpointing_changes_no_gradient_or_is_refused(reentrant, name):
    """The form that recomputes a layer in a backward of its own sees only what a layer is called with."""
    model, tokens = model_of({**EVERY[name], **QUIET}), some_tokens()
    gradients = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        try:
            torch.manual_seed(2)
            model(tokens, labels=tokens).loss.backward()
        except ValueError as refusal:
            assert reentrant and checkpointing and "use_reentrant=False" in str(refusal)
            mixed = "value_residual" in str(refusal) and "value_residual" in model.config.attentions
            assert mixed or any(field in str(refusal) and EVERY[name].get(field) for field in PASSED_ON)
            return
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, wanted in gradients[0].items():
        found = gradients[1][name]
        assert (found is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * wanted.abs().max().item(), msg=name)


# -- weights ---------------------------------------------------------------------------------------------------------


def linear_options():
    """Every mechanism as it comes, and with each field it reads at each value that can be listed."""
    switches = {
        "linear_conv_kernel_dim": (0, 1),
        "linear_attn_config.gate_rank": (3,),
        "linear_attn_config.decay_rank": (3,),
    }
    for mechanism, fields in LINEAR_MECHANISMS.items():
        word = "conv" if mechanism == "short_conv" else "linear_attention"
        sizes = {"short_conv": {}, "mamba": STATES, "mamba2": STATES, "rg_lru": BLOCKS}.get(mechanism, HEADS)
        base = linear(mechanism, [word, FULL, word], **sizes)
        yield pytest.param(base, id=mechanism)
        for field, default in fields.items():
            values = CHOICES.get(field, (True, False) if type(default) is bool else switches.get(field, ()))
            for value in values:
                yield pytest.param({**base, field: value}, id=f"{mechanism} {field}={value}")


@pytest.mark.sampled(17)
@pytest.mark.parametrize("fields", linear_options())
def test_every_weight_of_every_recurrence_is_used(fields):
    """Each row of each matrix gets a gradient, whatever the recurrence leaves out."""
    model = model_of(fields)
    if model is None:
        return
    model.train()
    for seed in range(2):
        tokens = torch.randint(6, 101, (3, 11), generator=torch.Generator().manual_seed(seed))
        model(tokens, labels=tokens).loss.backward()
    # A rectified channel may be off at every token.
    fewest = 0.9 if {"relu", "relu6"} & {value for value in fields.values() if isinstance(value, str)} else 1.0
    for name, parameter in model.model.layers.named_parameters():
        reached = parameter.grad.flatten(1).abs().amax(1) if parameter.dim() > 1 else parameter.grad.abs()
        assert (reached > 0).float().mean() >= fewest, name


# -- padding tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"hidden_size_per_layer_input": 7, "vocab_size_per_layer_input": 90}], ids=str)
def test_a_padding_token_is_in_every_table_or_refused(extra):
    """None, one of the table and, as torch counts from the end, -1; transformers ends in an assertion beyond it."""
    rows = extra.get("vocab_size_per_layer_input", 101)
    for pad in (None, 0, rows - 1, -1, -rows):
        model = model_of({**extra, "pad_token_id": pad})
        assert torch.isfinite(model(some_tokens() % rows).logits).all()
    for pad in (rows, -rows - 1, 200):
        with pytest.raises(StrictDataclassError, match=rf"pad_token_id={pad} is outside the table of vocab_size\w*="):
            ZooConfig(**{**SIZES, **extra, "pad_token_id": pad})


# -- fewer layers ----------------------------------------------------------------------------------------------------

# Models in which every layer depends on how many there are, by the field that says so.
WHOLE = ("block_type", "hidden_size_per_layer_input", "linear_attention_type")


def greedy(model, tokens, **options):
    arguments = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0} | options
    return model.generate(tokens, suppress_tokens=[0], attention_mask=torch.ones_like(tokens), **arguments)


def test_a_lowered_depth_by_the_code_of_a_folder(tmp_path):
    """Its config class and the one its model imports are two: the depth is settled all the same."""
    model_of({"layer_types": ["full_attention"] * 3}).save_pretrained(tmp_path)
    names = ("configuration_zoo.ZooConfig", "modeling_zoo.ZooForCausalLM")
    config_class, model_class = (get_class_from_dynamic_module(name, str(tmp_path)) for name in names)
    config = config_class.from_pretrained(tmp_path)
    assert not isinstance(config, model_class.config_class)
    config.num_hidden_layers = 2
    assert len(model_class(config).config.layer_types) == 2


@pytest.mark.sampled(13)
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("depth", [1, 2])
@torch.no_grad()
def test_the_first_layers_alone(depth, name, tmp_path):
    """As people do with Llama: fewer layers named beside the folder, or cut off by hand, and saved again."""
    whole, tokens = model_of(EVERY[name]), some_tokens()
    whole.save_pretrained(tmp_path / "whole")
    try:
        loaded = ZooForCausalLM.from_pretrained(tmp_path / "whole", num_hidden_layers=depth).eval()
    except (StrictDataclassError, ValueError) as refusal:
        assert any(field in str(refusal) and EVERY[name].get(field) for field in WHOLE)
        return
    whole.model.layers, whole.config.num_hidden_layers = whole.model.layers[:depth], depth
    wanted = whole(tokens).logits
    logits_match(loaded(tokens).logits, wanted)
    if not whole.config.use_bidirectional_attention:
        text = greedy(whole, tokens, use_cache=False)
        assert torch.equal(greedy(whole, tokens), text) and torch.equal(greedy(loaded, tokens), text)
    whole.save_pretrained(tmp_path / "cut")
    again = ZooForCausalLM.from_pretrained(tmp_path / "cut").eval()
    assert again.config.num_hidden_layers == len(again.config.layer_types) == depth
    logits_match(again(tokens).logits, wanted)


@torch.no_grad()
def test_first_layers_that_differ_in_a_number():
    """What `per_layer_config` says of the layers that stay, stays; what names others goes."""
    fields = {**SIZES, "per_layer_config": {1: {"intermediate_size": 20}, 2: {"intermediate_size": 30}}}
    config = ZooConfig.from_dict(ZooConfig(**fields).to_dict(), num_hidden_layers=2)
    assert [layer.intermediate_size for layer in config.per_layer_config] == [80, 20]


def test_a_mechanism_of_layers_left_out_is_no_other_layers():
    """A name that stood beside a layer of another kind meant nothing there."""
    words = ["linear_attention", FULL, FULL, "linear_attention"]
    mechanisms = {
        "attention_type": ["latent", "grouped_query", "latent", None],
        "linear_attention_type": ["delta_net", "gated_delta_net", None, "gated_delta_net"],
    }
    whole = ZooConfig(**{**SIZES, "num_hidden_layers": 4, "layer_types": words, **mechanisms})
    config = ZooConfig.from_dict(whole.to_dict(), num_hidden_layers=2)
    assert config.attention_type == [None, "grouped_query"] and config.linear_attention_type == ["delta_net", None]


def test_a_list_of_another_length_is_an_error_where_the_depth_is_not_lowered():
    for depth in (2, 4):
        with pytest.raises(StrictDataclassError, match="layer_types has 3 entries but num_hidden_layers="):
            ZooConfig(**{**SIZES, "num_hidden_layers": depth, "layer_types": [FULL] * 3})
    with pytest.raises(StrictDataclassError, match="layer_types has 3 entries but num_hidden_layers=4"):
        ZooConfig.from_dict(ZooConfig(**SIZES).to_dict(), num_hidden_layers=4)
    with pytest.raises(StrictDataclassError, match="num_experts=5 only means something"):
        ZooConfig.from_dict(ZooConfig(**SIZES).to_dict(), num_hidden_layers=2, num_experts=5)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_draft_by_the_first_layers(name):
    """LayerSkip lowers num_hidden_layers for every draft and raises it again: the text is that of all layers."""
    model, tokens = model_of(MODELS[name]), some_tokens()[:1]
    wanted = greedy(model, tokens, use_cache=False)
    if compresses(model.config):
        with pytest.raises(RuntimeError, match="entries of compressed attention cannot be taken back"):
            greedy(model, tokens, assistant_early_exit=2)
        return
    assert torch.equal(greedy(model, tokens, assistant_early_exit=2), wanted)
    logits_match(model(wanted).logits, model_of(MODELS[name])(wanted).logits)


# -- weights from nowhere --------------------------------------------------------------------------------------------


def emptied(config):
    """A model whose parameters and buffers are what memory held, a number nobody can miss."""
    with torch.device("meta"):
        model = ZooForCausalLM(config)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.fill_(77)
    return model


@pytest.mark.sampled(9)
@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_what_no_checkpoint_holds_comes_back(name):
    """meta, `to_empty` and `load_state_dict`, with `init_weights` between them, or with the weights assigned."""
    model, tokens = model_of(EVERY[name]), some_tokens()
    wanted, weights = model(tokens).logits, model.state_dict()
    loaded, started = emptied(model.config), emptied(model.config)
    started.init_weights()
    with torch.device("meta"):
        assigned = ZooForCausalLM(model.config)
    for again, assign in ((loaded, False), (started, False), (assigned, True)):
        again.load_state_dict(weights, strict=False, assign=assign)
        again.tie_weights()
        assert torch.equal(again.eval()(tokens).logits, wanted)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fields", named(row for row in ROWS["position"] if "position_embedding_type" in row))
@torch.no_grad()
def test_positions_without_a_table_of_angles_need_no_buffer(fields, tmp_path):
    """accelerate's `init_empty_weights(include_buffers=True)` leaves every buffer without data, as for BLOOM."""
    model, tokens = model_of(fields), some_tokens()
    model.save_pretrained(tmp_path)
    with init_empty_weights(include_buffers=True):
        empty = ZooForCausalLM(model.config)
    empty.tie_weights()
    loaded = load_checkpoint_and_dispatch(empty, str(tmp_path), device_map={"": "cpu"})
    assert torch.equal(loaded.eval()(tokens).logits, model(tokens).logits)
