"""Multi-head latent attention: what is cached is one small latent per token, not keys and values per head."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .attention import QueryTemperature, SoftmaxAttention
from .attention_gates import query_gate_width
from .norms import RMSNorm
from .ops_attention_latent import absorption_pays, into_latent, out_of_latent, read_shared_keys
from .ops_attention_latent_parts import SharedKeyView, refuse_expanded, shared_parts
from .ops_effective_weight import basis_weight, direct_weight, is_linear_map
from .ops_linear import linear
from .ops_rotary import apply_rotary

# Numbers of expanded keys and values held at once, where nothing has to keep them.
MOST_EXPANDED = 2**26


class LatentAttention(SoftmaxAttention):
    """softmax(q [U l, r]ᵀ · scale) V l: every head's key and value are maps of one latent l (DeepSeek-V2, §2.1).

    x → q_a → norm → q_b (or q_proj) → queries [own n, rotating r]; x → kv_a → latent → norm → cached `[B, 1, T, c]`
    and rope key → rotation → cached `[B, 1, T, r]`; kv_b holds U and V of each key-value head. Where few queries meet
    many keys the maps are absorbed into query and output, else keys and values are expanded: whichever multiplies less.
    """

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        heads, kv_heads, hidden = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
        self.num_heads, self.num_key_value_groups = heads, heads // kv_heads
        self.rank, self.nope, self.rope = config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_width = config.v_head_dim
        self.query_parts = (self.nope, self.rope, query_gate_width(config))
        self.ranked = config.q_lora_rank is not None
        self._build_queries(config, heads * sum(self.query_parts))
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.rank + self.rope, bias=config.attention_bias)
        self.kv_a_layernorm = RMSNorm(self.rank, config.mla_norm_eps)
        self.kv_b_proj = nn.Linear(self.rank, kv_heads * (self.nope + self.value_width), bias=False)
        self.o_proj = nn.Linear(heads * self.value_width, hidden, bias=config.attention_out_bias)
        self.query_scale = (hidden / config.q_lora_rank) ** 0.5 if config.mla_scale_q_lora else None
        self.latent_scale = (hidden / self.rank) ** 0.5 if config.mla_scale_kv_lora else None
        self.temperature = QueryTemperature(config) if config.has_attention_temperature(layer_idx) else None
        self.upcast = config.attention_upcast
        table = config.rope_tables.get(config.rope_table_of(layer_idx), {})
        whole = table.get("partial_rotary_factor", 1.0) == 1.0
        upcast = config.rope_dtype == "float32_qk"
        self.rotation = {"interleave": config.rope_interleave, "upcast": upcast, "whole": whole}

    def _build_queries(self, config, width):
        rank = config.q_lora_rank
        if not self.ranked:
            self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
            return
        self.q_a_proj = nn.Linear(config.hidden_size, rank, bias=config.attention_bias)
        self.q_a_layernorm = RMSNorm(rank, config.mla_norm_eps)
        self.q_b_proj = nn.Linear(rank, width, bias=False)

    def queries(self, hidden_states, low_rank):
        """`[B, T, D]`, q_a's output or None → what q_b reads `[B, T, q]`, queries `[B, T, H, n]` and `[B, T, H, r]`,
        gate `[B, T, H, v]` or None."""
        if self.ranked:
            compressed = self.q_a_layernorm(low_rank)
            query = self.q_b_proj(compressed)
        else:
            compressed, query = hidden_states, self.q_proj(hidden_states)
        query = query.view(*query.shape[:-1], -1, sum(self.query_parts))
        nope, rope, gate = query.split(self.query_parts, dim=-1)
        if self.query_scale is not None:
            nope, rope = nope * self.query_scale, rope * self.query_scale
        return compressed, nope, rope, gate if self.query_parts[-1] else None

    def latents(self, joint):
        """kv_a's output → latent `[B, T, c]` and rope key `[B, T, 1, r]`, not yet turned."""
        latent, rope_key = joint.split((self.rank, self.rope), dim=-1)
        latent = self.kv_a_layernorm(latent)
        if self.latent_scale is not None:
            latent = latent * self.latent_scale
        return latent, rope_key.unsqueeze(2)

    def rotate(self, rope, rope_key, position_embeddings):
        """Queries `[B, T, H, r]` and the shared key `[B, T, 1, r]`, turned together; as they are in a layer without."""
        if position_embeddings is None:
            return rope, rope_key
        together = torch.cat((rope, rope_key), dim=2)
        return apply_rotary(together, position_embeddings, **self.rotation).split((rope.shape[2], 1), dim=2)

    def forward(
        self,
        hidden_states,
        *,
        position_embeddings=None,
        attention_mask=None,
        past_key_values=None,
        position_ids=None,
        **kwargs,
    ):
        low_rank = self.q_a_proj(hidden_states) if self.ranked else None
        joint = self.kv_a_proj_with_mqa(hidden_states)
        query, compressed, gate, latent, rope_key = self.split(
            hidden_states, low_rank, joint, position_embeddings, position_ids
        )
        latent, rope_key = self.update_cache(latent, rope_key, past_key_values)
        inputs = hidden_states, compressed, position_embeddings
        attn_output, weights = self.mix(
            query, latent, rope_key, attention_mask, past_key_values, inputs, position_ids=position_ids, **kwargs
        )
        return self.output(attn_output, hidden_states, gate), weights

    def split(self, hidden_states, low_rank, joint, position_embeddings, position_ids):
        """What q_a and kv_a gave → queries (`[B, H, T, n]`, `[B, H, T, r]`), what q_b reads, gate, latent `[B, 1, T,
        c]` and rope key `[B, 1, T, r]`, rotated."""
        compressed, nope, rope, gate = self.queries(hidden_states, low_rank)
        latent, rope_key = self.latents(joint)
        rope, rope_key = self.rotate(rope, rope_key, position_embeddings)
        if self.temperature is not None:
            nope, rope = (self.temperature(part, position_ids) for part in (nope, rope))
        query = nope.transpose(1, 2), rope.transpose(1, 2)
        return query, compressed, gate, latent.unsqueeze(1), rope_key.transpose(1, 2)

    def update_cache(self, latent, rope_key, past_key_values):
        """Puts these tokens into the cache → latents and rope keys of all tokens."""
        if past_key_values is None:
            return latent, rope_key
        refuse_expanded(past_key_values, self.layer_idx)
        # Under autocast norms give float32; the two are stored side by side.
        return past_key_values.update(latent.to(rope_key.dtype), rope_key, self.layer_idx)

    def mix(self, query, latent, rope_key, attention_mask, past_key_values, inputs, shared_indices=None, **kwargs):
        """Queries over all cached latents → (`[B, T, H, v]`, weights or None), by the cheaper form."""
        weight = self.absorbable(query[0], latent, attention_mask, past_key_values)
        if weight is None:
            return self.expanded(query, latent, rope_key, attention_mask, **kwargs)
        return self.absorbed(query, latent, rope_key, attention_mask, past_key_values, weight, **kwargs)

    # -- expanded ------------------------------------------------------------------------------------------------------

    def expand(self, latent, rope_key):
        """Keys `[B, K, S, n + r]` and values `[B, K, S, v]` of all key-value heads."""
        key, value = self.per_head(self.kv_b_proj(latent), rope_key)
        return key, value

    def per_head(self, expanded, rope_key):
        """kv_b's output `[B, 1, S, K (n + v)]`, of all key-value heads or some, → their keys and values."""
        batch, _, length, _ = expanded.shape
        expanded = expanded.view(batch, length, -1, self.nope + self.value_width).transpose(1, 2)
        key, value = expanded.split((self.nope, self.value_width), dim=-1)
        if self.rope:
            key = torch.cat((key, rope_key.expand(-1, key.shape[1], -1, -1)), dim=-1)
        return key, value

    def expanded(self, query, latent, rope_key, attention_mask, **kwargs):
        """Attention over keys and values of every head, by the configured backend."""
        read = partial(self.attend_expanded, attention_mask=attention_mask, **kwargs)
        return self.over_heads(read, query, latent, rope_key, **kwargs)

    def over_heads(self, read, query, latent, rope_key, position_bias=None, **kwargs):
        """`read(query, key, value)` → (`[B, T, H, v]`, weights or None), of so many heads at once as memory bounds."""
        weight = self.divisible(latent) if position_bias is None else None
        if weight is None:
            return read(torch.cat(query, dim=-1), *self.expand(latent, rope_key))
        per_head = self.nope + self.value_width
        kv_heads = weight.shape[0] // per_head
        step = max(1, MOST_EXPANDED // (latent.shape[0] * latent.shape[2] * (per_head + self.rope)))
        output = latent.new_empty(query[0].shape[0], query[0].shape[2], query[0].shape[1], self.value_width)
        for start in range(0, kv_heads, step):
            stop = min(start + step, kv_heads)
            heads = slice(start * self.num_key_value_groups, stop * self.num_key_value_groups)
            states = self.per_head(linear(latent, weight[start * per_head : stop * per_head]), rope_key)
            output[:, :, heads] = read(torch.cat([part[:, heads] for part in query], dim=-1), *states)[0]
        return output, None

    def divisible(self, latent):
        """kv_b's matrix where its heads can be expanded a few at a time and are too many for once, else None.

        Gradients keep every head's keys and values in any case; the plain backend shows weights of all heads.
        """
        if torch.is_grad_enabled() or self.config._attn_implementation != "sdpa" or torch.compiler.is_compiling():
            return None
        size = latent.shape[0] * latent.shape[2] * (self.nope + self.rope + self.value_width)
        weight = direct_weight(self.kv_b_proj)
        if weight is None or weight.dtype != latent.dtype:
            return None
        return weight if size * weight.shape[0] // (self.nope + self.value_width) > MOST_EXPANDED else None

    def attend_expanded(self, query, key, value, attention_mask, **kwargs):
        """`attend`, with the narrower of keys and values filled up with zeros where the fused kernel needs one width.

        On a CPU, unequal widths send `scaled_dot_product_attention` to a form that holds all scores at once.
        """
        width = value.shape[-1]
        missing = query.shape[-1] - width
        if missing and query.shape[2] > 1 and query.device.type == "cpu" and self.config._attn_implementation == "sdpa":
            if missing > 0:
                value = F.pad(value, (0, missing))
            else:
                query, key = F.pad(query, (0, -missing)), F.pad(key, (0, -missing))
        attn_output, weights = self.attend(query, key, value, attention_mask, **kwargs)
        return attn_output[..., :width], weights

    # -- absorbed ------------------------------------------------------------------------------------------------------

    def absorbable(self, query, latent, attention_mask, past_key_values):
        """kv_b's effective matrix `[K (n + v), c]` where absorbing it is possible and cheaper, else None."""
        queries, keys = query.shape[2], latent.shape[2]
        masked = isinstance(attention_mask, torch.Tensor)
        # Without a mask, several queries rely on the backend's own idea of what is causal.
        readable = (masked and attention_mask.dim() == 4) or (queries == 1 and (masked or attention_mask is None))
        if past_key_values is None or keys <= queries or not readable or (self.training and self.attention_dropout):
            return None
        return self.matrix_if_cheap(query, latent)

    def matrix_if_cheap(self, query, latent, pairs=None):
        """kv_b's effective matrix, None where it cannot be had or costs more than it saves."""
        weight = direct_weight(self.kv_b_proj)
        if weight is None and not is_linear_map(self.kv_b_proj):
            return None
        basis_rows = self.rank / query.shape[0] if weight is None else 0
        heads = query.shape[1]
        sizes = (heads, heads // self.num_key_value_groups, self.rank, self.nope, self.rope, self.value_width)
        if not absorption_pays(query.shape[2], latent.shape[2], *sizes, basis_rows, pairs):
            return None
        return basis_weight(self.kv_b_proj, self.rank, latent) if weight is None else weight

    def maps(self, weight):
        """U and V of all key-value heads one above the other, `[K, n + v, c]`."""
        return weight.unflatten(0, (-1, self.nope + self.value_width))

    def absorbed(self, query, latent, rope_key, attention_mask, past_key_values, weight, position_bias=None, **kwargs):
        """Attention over the latents themselves; U goes into the query, V onto the output."""
        maps = self.maps(weight)
        query = into_latent(query[0], maps, self.nope), query[1]
        backend = self.config._attn_implementation
        if backend in ("eager", "sdpa") or "flash" in backend:
            latent, rope_key, mask = self.seen(latent, rope_key, attention_mask)
            parts = shared_parts(latent, rope_key, past_key_values, self.layer_idx)
            context, weights = self.read(query, parts, backend == "eager", mask=mask, position_bias=position_bias)
        else:
            context, weights = self.offer(query, latent, rope_key, attention_mask, position_bias, **kwargs)
        return out_of_latent(context, maps, self.nope).transpose(1, 2), weights

    def read(self, query, parts, want_weights=False, **shape):
        """Latent queries over the shared keys by the maths of this package → (`[B, H, T, c]`, weights or None).

        transformers' sdpa repeats a shared key for every head, and no fused kernel takes one this wide.
        """
        if len(parts) == 1:
            query = (torch.cat(query, dim=-1),)
        return read_shared_keys(
            query[: len(parts)],
            parts,
            self.rank,
            self.scaling,
            softcap=self.softcap,
            sinks=self.sink_logits,
            upcast=self.upcast,
            want_weights=want_weights,
            **shape,
        )

    def seen(self, latent, rope_key, attention_mask):
        """Latents, rope keys and a mask `[B, 1, T, S]` or None, from what flash backends get: 2-D padding, a window."""
        if self.sliding_window is not None and "flash" in self.config._attn_implementation:
            latent, rope_key = (part[:, :, -self.sliding_window :] for part in (latent, rope_key))
        if attention_mask is not None and attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None, None, -latent.shape[2] :].bool()
        return latent, rope_key, attention_mask

    def offer(self, query, latent, rope_key, attention_mask, position_bias=None, **kwargs):
        """The same by a registered backend: one key-value head, keys c + r wide, values c wide."""
        key = torch.cat((latent, rope_key), dim=-1)
        view = SharedKeyView(self, query[0].shape[1])
        bias = {} if position_bias is None else {"position_bias": position_bias}
        context, weights = SoftmaxAttention.attend(
            view, torch.cat(query, dim=-1), key, latent, attention_mask, **bias, **kwargs
        )
        return context.transpose(1, 2), weights
