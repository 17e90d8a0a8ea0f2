"""Every row of flags split over two ranks: the numbers of one process, or a sentence that says why not."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from combinations import EXPERTS, FULL, HYBRID, LINEAR, ROWS, SHARED_BLOCKS, STATES, linear
from rows_alone import distinct, model_of
from torch.multiprocessing import start_processes
from transformers.distributed import DistributedConfig

from modeling_zoo import ZooForCausalLM

# What the sentence names where two ranks refuse: heads that do not divide, and an indexer that learns from all heads.
REFUSED = {"num_key_value_heads=3": {"num_key_value_heads": 3}, "indexer_loss_coef=0.1": {"indexer_loss_coef": 0.1}}


def named(row):
    """The words of a refusal that is due for these flags, None for none."""
    parts = [row, *row.get("per_layer_config", {}).values()]
    due = [words for words, flags in REFUSED.items() if any(flags.items() <= part.items() for part in parts)]
    return due[0] if due else None


# Beside the rows: fewer heads of keys than ranks, experts beside biases, and blocks that layers share with both.
ONE_HEAD = {"num_key_value_heads": 1}
ROWS = ROWS | {
    "few": [
        {"position_embedding_type": "alibi", "qk_norm": "rms_norm", **ONE_HEAD},
        {"position_embedding_type": "alibi", "attention_sinks": "all", "layer_types": [FULL] * 3},
        {"position_embedding_type": "relative", **EXPERTS, **ONE_HEAD},
        {"position_embedding_type": "transformer_xl", **ONE_HEAD},
        linear("mamba2", [HYBRID, LINEAR, HYBRID], **STATES, **SHARED_BLOCKS, **ONE_HEAD, qk_norm="rms_norm",
               shared_attention_adapter_rank=4),
        {"hidden_size_per_layer_input": 7, "tie_word_embeddings": True},
        {"hidden_act": "xielu", "gated_mlp": False},
        {"hidden_act": "xielu", **EXPERTS, "n_shared_experts": 1},
    ]
}  # fmt: skip


def computed(model, tokens):
    """Logits, those of three single steps, and gradients of a training step, whole."""
    model.eval()
    with torch.no_grad():
        found = {"logits": model(tokens).logits}
        if not model.config.use_bidirectional_attention:
            outputs, steps = model(tokens[:, :6], use_cache=True), []
            for column in range(6, 9):
                cache = outputs.past_key_values
                outputs = model(tokens[:, column : column + 1], past_key_values=cache, use_cache=True)
                steps.append(outputs.logits)
            found["steps"] = torch.cat(steps, 1)
    loss = model.train()(tokens, labels=tokens).loss
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    found |= {name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in gradients.items()}
    return found | {"loss": loss.detach()}


def rank_of_two(rank, folder, names, tokens):
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=3))
    for name in names:
        try:
            layout = DistributedConfig(tp_size=2)
            model = ZooForCausalLM.from_pretrained(f"{folder}/{name}", distributed_config=layout, dtype=torch.float64)
            found = computed(model, tokens)
            own = sum((x.to_local() if hasattr(x, "to_local") else x).numel() for x in model.parameters())
            found["held"] = own / sum(x.numel() for x in model.parameters())
        except ValueError as error:
            found = str(error)
        if rank == 0:
            torch.save(found, f"{folder}/{name}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


def differences(found, expected):
    """What two ranks compute otherwise, {name: by how much of its largest number}."""
    apart = {}
    for name in expected.keys() | found.keys():
        one, two = (side.get(name, torch.zeros(())).double() for side in (expected, found))
        difference = (one - two).abs().max().item()
        # The loss and some norms are float32.
        if difference > max(1e-4 * one.abs().max().item(), 1e-9):
            apart[name] = difference / max(one.abs().max().item(), 1e-30)
    return apart


@pytest.mark.long
@pytest.mark.parametrize("group", ROWS)
def test_two_ranks_compute_what_one_does_or_say_why_not(group, tmp_path):
    torch.manual_seed(0)
    tokens = torch.randint(1, 101, (2, 9))
    rows = {f"{group} {n}": row for n, row in distinct(ROWS[group]).items()}
    models = {name: model_of(row) for name, row in rows.items()}
    models = {name: model for name, model in models.items() if model is not None}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    start_processes(rank_of_two, (str(tmp_path), [*models], tokens), nprocs=2, start_method="fork")
    wrong = {}
    for name, model in models.items():
        found = torch.load(tmp_path / name / "found.pt")
        if isinstance(found, str):
            if named(rows[name]) is None or named(rows[name]) not in found:
                wrong[name] = found
        elif named(rows[name]) is not None:
            wrong[name] = "is not refused"
        elif found.pop("held") > 0.85 and "sub_norm" not in str(rows[name].get("block_type")):
            wrong[name] = "is whole on every rank"
        else:
            apart = differences(found, computed(model, tokens))
            if apart:
                wrong[name] = apart
    assert not wrong, "\n".join(f"{name} {rows[name]}: {what}" for name, what in wrong.items())
