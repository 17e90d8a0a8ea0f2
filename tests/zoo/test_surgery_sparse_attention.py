"""Latent attention that reads the keys an indexer chooses: exact up to so many, and indexers that learn to choose."""

import json

import pytest
import torch
from surgery_models import STORIES, TEXT, family_config, logits, random_model, stories, tokens

from modeling_zoo import ZooForCausalLM
from zoo.surgery import Healing, heal, operate
from zoo.surgery.distillation import INDEXER, LOGITS, OUTPUTS, Distillation, HealingStage
from zoo.surgery.operation import SurgeryError

TYPES, KEYS, LATENT = "layer_types", "index_topk", {"attention_type": "latent"}
SPARSE = {TYPES: "indexed_attention", KEYS: 16}


def latent_model(**more):
    """A small latent model without multi-token prediction, all parameters random."""
    config = family_config("deepseek_v2", 0)
    return random_model(type(config)(**{**config.to_dict(), **more}))


def test_the_trained_model_reads_few_keys_and_is_exact_within_them(zoo, tmp_path):
    """One command, of two operations."""
    words = [f"--set={name}={value}" for name, value in (LATENT | SPARSE).items()]
    code, out, error = zoo("surgery", STORIES, tmp_path / "new", *words, "--json")
    assert code == 0, error
    done = json.loads(out)["operations"]
    assert [one["exactness"] for one in done] == ["bits", "when length <= 16"]
    assert [one["largest_difference"] for one in done] == [0.0, 0.0]
    new = ZooForCausalLM.from_pretrained(tmp_path / "new")
    model, text = stories()
    rows = text.to_measure(512)
    assert torch.equal(logits(new, rows[:, :16]), logits(model, rows[:, :16]))
    assert not torch.allclose(logits(new, rows[:, :60])[:, 40:], logits(model, rows[:, :60])[:, 40:], atol=1e-2)
    # Sizes that follow from the model's: half as many heads, of at least 32 channels.
    assert (new.config.index_n_heads, new.config.index_head_dim, new.config.indexer["warmup"]) == (4, 32, False)
    assert new.num_parameters() == 326_592 + 52_800


@pytest.mark.parametrize("more", [{}, {"index_n_heads": 3, "index_head_dim": 22}])
def test_chosen_layers_of_another_family(more):
    model = latent_model()
    report = operate(model, None, {TYPES: "indexed_attention", KEYS: 5, **more}, layers=[1])
    new, ids = report.model, tokens(model.config)
    assert new.config.indexer_types[:2] == ["none", "full"] and new.config.indexer_loss_coef == 1.0
    assert torch.equal(logits(new, ids[:, :5]), logits(model, ids[:, :5]))
    assert not torch.equal(logits(new, ids)[:, -1], logits(model, ids)[:, -1])
    assert report.changed == ["1.indexer"]
    indexer = new.model.layers[1].self_attn.indexer
    assert torch.equal(indexer.k_norm.weight, torch.ones(indexer.width)) and indexer.wk.weight.std() > 0


def test_indexers_alone_learn_from_dense_attention():
    """By the loss of the model's own recipe: in training, with `indexer.warmup`."""
    model = latent_model()
    sparse = operate(model, None, {TYPES: "indexed_attention", KEYS: 4}).model
    ids = tokens(sparse.config, rows=8, length=24)
    stage = HealingStage(INDEXER, 12, 3e-3, "changed")
    changed = [f"{layer}.indexer" for layer in range(sparse.config.num_hidden_layers)]
    before = {name: one.clone() for name, one in sparse.state_dict().items()}
    loop = Distillation(model, sparse, ids, changed, [stage])
    settings = sparse.config.to_dict()
    settings["indexer"] |= {"warmup": True}
    recipe = ZooForCausalLM(type(sparse.config)(**settings))
    recipe.load_state_dict(before)
    rows = loop.batch()
    recipe.train()
    wanted = recipe(rows, labels=rows).loss
    recipe.config.indexer_loss_coef = 0.0
    wanted = wanted - recipe(rows, labels=rows).loss
    assert loop.indexer_loss(rows, sparse).item() == pytest.approx(wanted.item(), rel=1e-5)
    loop.run()
    assert loop.progress.curve[-1][2] < loop.progress.curve[0][2]
    learnt = {name for name, one in sparse.state_dict().items() if not torch.equal(one, before[name])}
    assert all(".indexer." in name for name in learnt)
    assert not sparse.config.indexer["warmup"] and not any(one.training for one in sparse.modules())


def test_indexers_go_on_learning_in_the_sparse_model():
    """Steps on logits give them a gradient too; outputs of exact operations are not fitted to rounding."""
    model = latent_model()
    sparse = operate(model, None, {TYPES: "indexed_attention", KEYS: 4}).model
    changed = [f"{layer}.{part}" for layer in range(sparse.config.num_hidden_layers) for part in ("mixer", "indexer")]
    stages = [HealingStage(OUTPUTS, 3, 3e-3, "changed"), HealingStage(LOGITS, 1, 1e-3, "all")]
    loop = Distillation(model, sparse, tokens(sparse.config, rows=8, length=24), changed, stages)
    loss = loop.logit_loss(loop.batch(), sparse)
    loss.backward()
    assert all(one.grad.abs().sum() > 0 for name, one in sparse.named_parameters() if "indexer.wq" in name)
    sparse.zero_grad()
    loop.run()
    assert loop.progress.idle == [0] and len(loop.progress.curve) == 1


def test_a_folder_is_healed_and_remembers_it(tmp_path):
    rows = stories()[1].ids[:12, :64]
    operate(STORIES, tmp_path / "new", LATENT | SPARSE)
    with pytest.raises(SurgeryError, match="learn in a whole model"):
        heal(tmp_path / "new", None, rows, steps=0, layerwise=1, indexer=1, streamed=True)
    report = heal(tmp_path / "new", STORIES, rows, steps=1, indexer=2)
    assert [(one["loss"], one["steps"]) for one in report.healing[0]["stages"]] == [("indexer", 2), ("logits", 1)]
    assert report.healed.perplexity <= report.after.perplexity
    again = heal(tmp_path / "new", STORIES, rows, steps=1)
    assert [one["loss"] for one in again.healing[1]["stages"]] == ["logits"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (SPARSE, "--set attention_type=latent as well"),
        (LATENT | {TYPES: "indexed_attention"}, "say index_topk as well"),
        (LATENT | SPARSE | {"index_head_dim": 6}, "index_head_dim=6 must be at least 8"),
        (LATENT | SPARSE | {KEYS: 0}, "say index_topk as well"),
    ],
)
def test_what_cannot_be_done_is_refused(fields, says):
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, None, fields)


def test_a_model_without_new_indexers_has_none_to_warm_up():
    with pytest.raises(SurgeryError, match="indexer=3: surgery gave this model no new indexer"):
        operate(STORIES, None, {"num_key_value_heads": 2}, heal=stories()[1].ids[:12], healing=Healing(1, indexer=3))


@pytest.mark.long
@pytest.mark.parametrize(("keys", "untrained", "most"), [(16, 90, 3.271), (64, 20, 2.860)])
def test_indexers_learn_to_what_was_measured(keys, untrained, most):
    how = Healing(0, indexer=80)
    report = operate(STORIES, None, LATENT | SPARSE | {KEYS: keys}, heal=TEXT, healing=how)
    assert report.after.perplexity > untrained and report.healed.perplexity <= most
