"""FlashMLA and FlashInfer behind `attn_implementation="paged_mla"`, played by slow functions with their signatures."""

import sys
from types import ModuleType

import pytest
import torch
from random_models import randomize
from transformers import DynamicCache, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, platform_paged_mla
from modeling_zoo.cache_upgrade import upgrade_cache

LATENT = {
    "vocab_size": 31, "hidden_size": 40, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "attention_type": "latent", "kv_lora_rank": 512, "q_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 64,
    "v_head_dim": 14, "max_position_embeddings": 256,
}  # fmt: skip
calls = []


def attend(query, rows, rank, scale):
    """`[H, d]` over `[S, d]` → `[H, c]`."""
    return torch.softmax(query.float() @ rows.float().T * scale, dim=-1) @ rows[:, :rank].float()


def flash_mla():
    module = ModuleType("flash_mla")
    module.__spec__ = object()

    def get_mla_metadata(cache_seqlens, num_q_tokens_per_head_k, num_heads_k):
        assert cache_seqlens.dtype == torch.int32 and num_heads_k == 1
        return "plan", "splits"

    def flash_mla_with_kvcache(
        q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits=None,
        softmax_scale=None, causal=False,
    ):  # fmt: skip
        assert (tile_scheduler_metadata, num_splits, causal) == ("plan", "splits", False)
        assert q.shape[1] == 1 and q.shape[-1] == k_cache.shape[-1] == 576 and k_cache.shape[1:3] == (64, 1)
        assert head_dim_v == 512 and block_table.dtype == torch.int32
        calls.append(cache_seqlens.tolist())
        outputs = []
        for row, length in enumerate(cache_seqlens.tolist()):
            rows = k_cache[block_table[row].long()].flatten(0, 1)[:length, 0]
            outputs.append(attend(q[row, 0], rows, head_dim_v, softmax_scale))
        return torch.stack(outputs).unsqueeze(1).to(q.dtype), None

    module.get_mla_metadata, module.flash_mla_with_kvcache = get_mla_metadata, flash_mla_with_kvcache
    return {"flash_mla": module}


def flashinfer():
    package, module = ModuleType("flashinfer"), ModuleType("flashinfer.mla")
    package.__spec__ = module.__spec__ = object()

    class BatchMLAPagedAttentionWrapper:
        def __init__(self, float_workspace_buffer, use_cuda_graph=False, backend="auto"):
            assert float_workspace_buffer.nbytes == 2**27

        def plan(
            self, qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_heads, head_dim_ckv, head_dim_kpe, page_size,
            causal, sm_scale, q_data_type, kv_data_type,
        ):  # fmt: skip
            assert qo_indptr.tolist() == list(range(len(kv_len_arr) + 1)) and page_size == 64 and not causal
            assert (head_dim_ckv, head_dim_kpe) == (512, 64) and q_data_type == kv_data_type
            self.ends, self.indices, self.lengths, self.scale = kv_indptr, kv_indices, kv_len_arr, sm_scale

        def run(self, q_nope, q_pe, ckv_cache, kpe_cache):
            calls.append(self.lengths.tolist())
            outputs = []
            for row, length in enumerate(self.lengths.tolist()):
                used = self.indices[self.ends[row] : self.ends[row + 1]].long()
                rows = torch.cat((ckv_cache, kpe_cache), dim=-1)[used].flatten(0, 1)[:length]
                outputs.append(attend(torch.cat((q_nope[row], q_pe[row]), dim=-1), rows, 512, self.scale))
            return torch.stack(outputs).to(q_nope.dtype)

    module.BatchMLAPagedAttentionWrapper = BatchMLAPagedAttentionWrapper
    package.mla = module
    return {"flashinfer": package, "flashinfer.mla": module}


@pytest.fixture(params=[flash_mla, flashinfer], ids=["FlashMLA", "FlashInfer"])
def library(request, monkeypatch):
    for name, module in request.param().items():
        monkeypatch.setitem(sys.modules, name, module)
    platform_paged_mla.register_paged_mla()
    calls.clear()
    yield
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop("paged_mla", None)


def made(**more):
    torch.manual_seed(0)
    model = ZooForCausalLM(ZooConfig(**LATENT | more)).eval()
    randomize(model)
    return model.to(torch.bfloat16)


def in_steps(model, mask=None, kind=StaticCache, step=None):
    tokens = torch.randint(0, 31, (2, 73), generator=torch.Generator().manual_seed(3))
    room = {"max_cache_len": 128} if kind is StaticCache else {}
    cache = upgrade_cache(kind(config=model.config, **room), model.config)
    parts = []
    for start, stop in ((0, 63), (63, 64), (64, 65), (65, 72), (72, 73)):
        here = {} if mask is None else {"attention_mask": mask[:, :stop]}
        run = model if step is None or stop - start > 1 else step
        parts.append(run(tokens[:, start:stop], past_key_values=cache, **here).logits.float())
    return torch.cat(parts, dim=1)


@torch.no_grad()
def test_tokens_over_a_static_cache_go_to_the_library(library):
    model = made()
    expected = in_steps(model)
    model.set_attn_implementation("paged_mla")
    found = in_steps(model)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert calls == [[64, 64]] * 2 + [[65, 65]] * 2 + [[73, 73]] * 2


@torch.no_grad()
def test_the_pages_are_the_cache_itself():
    key = torch.randn(2, 128, 576)
    blocks, table = platform_paged_mla.pages(key)
    assert blocks.data_ptr() == key.data_ptr() and blocks.shape == (4, 64, 1, 576)
    assert table.tolist() == [[0, 1], [2, 3]]


@torch.no_grad()
def test_a_growing_cache_is_read_by_zoo(library):
    model = made()
    expected = in_steps(model, kind=DynamicCache)
    model.set_attn_implementation("paged_mla")
    found = in_steps(model, kind=DynamicCache)
    assert (found - expected).norm() < 0.02 * expected.norm() and not calls


@torch.no_grad()
@pytest.mark.parametrize("library", [flash_mla], indirect=True, ids=["FlashMLA"])
def test_compiled_a_token_is_one_graph(library):
    model = made(num_hidden_layers=1)
    model.set_attn_implementation("paged_mla")
    expected, eager = in_steps(model), list(calls)
    calls.clear()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = in_steps(model, step=compiled)
    assert (found - expected).norm() < 0.02 * expected.norm() and calls == eager


@torch.no_grad()
def test_padding_on_the_left_is_refused(library):
    model, mask = made(), torch.ones(2, 73, dtype=torch.long)
    model.set_attn_implementation("paged_mla")
    mask[1, :3] = 0
    with pytest.raises(ValueError, match="'paged_mla' cannot leave out padding on the left"):
        in_steps(model, mask)


@torch.no_grad()
@pytest.mark.parametrize("more", [{"kv_lora_rank": 128}, {"sliding_window": 16}], ids=str)
def test_latents_that_the_kernels_do_not_read_are_refused(library, more):
    model = made(**more)
    model.set_attn_implementation("paged_mla")
    with pytest.raises(ValueError, match="'paged_mla' reads latents of 512 and 64 numbers of 16 bits without a window"):
        in_steps(model)


@torch.no_grad()
def test_layers_without_latents_are_refused(library):
    model = ZooForCausalLM(ZooConfig(vocab_size=31, hidden_size=40, num_attention_heads=4, num_hidden_layers=1)).eval()
    model.bfloat16().set_attn_implementation("paged_mla")
    with pytest.raises(ValueError, match="layer 0 has None and"):
        model(torch.ones(1, 4, dtype=torch.long))


def test_what_it_would_drop_is_refused(library):
    with pytest.raises(ValueError, match="'paged_mla' cannot compute a model with attention_sinks"):
        made(attention_sinks="all").set_attn_implementation("paged_mla")


def test_without_a_library_the_name_is_unknown():
    with pytest.raises(ValueError, match="paged_mla"):
        made().set_attn_implementation("paged_mla")
