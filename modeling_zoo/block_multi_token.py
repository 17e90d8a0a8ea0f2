"""Multi-token prediction: layers behind the model, each of which predicts one token further.

    h⁰_i ──────────────── head ── token i + 1            h'_i = W [norm(e_{i+k}) ; norm(h_i^{k-1})]
      │ e_{i+1}                                          h_i^k = norm(layer_k(h'_1 .. h'_i))
    layer 1 ── h¹_i ───── head ── token i + 2
      │ e_{i+2}
    layer 2 ── h²_i ───── head ── token i + 3

h⁰ is what the model's own head reads, e what enters its first layer; both ends are the model's. The k-th layer has seen
the tokens up to i + k when it predicts the next one (DeepSeek-V3, arXiv 2412.19437, §2.2, eqs. 21-23).
"""

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from configuration_zoo import ZooConfig

from .attention_masks import build_masks, layer_mask, mask_names, mask_plan
from .block_topologies import make_block, make_cross_layer_state
from .cache_upgrade import advance_cache, upgrade_cache
from .norms import make_norm
from .platform_transformers import take_plans
from .position_rotary import Rotations


class TokenAndState(nn.Module):
    """W [norm(e) ; norm(h)], embeddings and hidden states `[B, T, D]` → `[B, T, D]` (DeepSeek-V3, eq. 21); with
    `hidden_states_first` W [norm(h) ; norm(e)]."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        width = config.hidden_size
        self.embedding_norm = make_norm(config, width, cast_input=True)
        self.hidden_norm = make_norm(config, width, cast_input=True)
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.hidden_states_first = config.mtp["hidden_states_first"]

    def forward(self, embeddings: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        parts = [self.embedding_norm(embeddings), self.hidden_norm(hidden_states)]
        return self.eh_proj(torch.cat(parts[::-1] if self.hidden_states_first else parts, dim=-1))


class MultiTokenPrediction(nn.Module):
    """`num_mtp_layers` layers like one of the model's, each between a `TokenAndState` and a norm: of its own
    (DeepSeek-V3, GLM-4.5), or the same for all of them (`mtp.projection`; Qwen3-Next).

    Each is a model of one layer to masks, rotations and caches: position i of its sequence is that of h_i.
    """

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.config = config.mtp_layer_config()
        depths = range(config.num_mtp_layers)
        self.ends_for_all = config.mtp["projection"] == "one_for_all"
        ends = range(1) if self.ends_for_all else depths
        self.projections = nn.ModuleList(TokenAndState(self.config) for _ in ends)
        self.layers = nn.ModuleList(make_block(self.config, 0) for _ in depths)
        self.norm = nn.ModuleList(make_norm(self.config, config.hidden_size) for _ in ends)
        self.rotary_emb = Rotations(self.config)
        self.mask_names = mask_names(self.config)
        self.mask_plan = mask_plan(self.config, self.mask_names)
        self.cross_layer_state = make_cross_layer_state(self.config)
        take_plans(self, self.config)

    def make_cache(self) -> Cache:
        """An empty cache for one of the layers."""
        return upgrade_cache(DynamicCache(config=self.config), self.config)

    def forward(
        self,
        depth: int,
        embeddings: torch.Tensor,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """h^k `[B, T, D]` of layer k = `depth` + 1 from e_{i+k} and h_i^{k-1} `[B, T, D]`.

        `position_ids` are those of the embedded tokens. `attention_mask` `[B, S + T]` and `places` `[1 or B, T]`, which
        tell packed sequences apart, are of the hidden states.
        """
        end = 0 if self.ends_for_all else depth
        layer, mixed = self.layers[depth], self.projections[end](embeddings, hidden_states)
        mixed = mixed.float() if self.config.precision["residual_in_fp32"] else mixed
        masks = build_masks(self.config, mixed, attention_mask, past_key_values, places, plan=self.mask_plan)
        found = layer(
            mixed,
            position_embeddings=self.rotary_emb.tables_at(embeddings, position_ids).get(self.rotary_emb.names[0]),
            attention_mask=layer_mask(masks, self.mask_names[0]),
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            **{name: state() for name, state in (self.cross_layer_state or {}).items()},
        )
        advance_cache(past_key_values, found, [layer])
        return self.norm[end](found).to(hidden_states.dtype)


# What a field asks for.
MULTI_TOKEN_PREDICTIONS = {"num_mtp_layers": MultiTokenPrediction}
