"""Attention in bands: where a query reaches back a bounded number of tokens, cost and memory grow with that number.

A mask of T queries over S keys is T · S numbers and makes attention compute as many scores, most of them to be hidden.
A `BandMask` is the rule instead; attention asks it for the block it is about to compute.
"""

import torch
from torch.autograd.function import once_differentiable

from .ops_dispatch import is_traced
from .recurrent_packing import places_behind, starts_of_jumps

# Queries per pass. More of them share a read of their keys, fewer compute less that is hidden.
CPU_BLOCK, DEVICE_BLOCK = 128, 1024


def query_block(device):
    """Queries that are read together on `device`."""
    return CPU_BLOCK if torch.device(device).type == "cpu" else DEVICE_BLOCK


class BandMask:
    """Which of S keys each of T queries sees, as a rule: itself and what is before it, less than `reach` tokens back.

    `first_query` and `first_key` are the slots of the first of each. `chunk` further keeps a query inside its own chunk
    of that many tokens, counted from `starts` `[B]`. `padding` `[B, S]` is False for keys nobody sees; `segments`
    `[B, T]` numbers packed sequences, which do not see each other (queries and keys are the same tokens then), and
    `origins` says, T numbers, where those that a token stands in start at the earliest.
    """

    def __init__(self, queries, keys, first_query=0, first_key=0, reach=None, chunk=False, origins=None, **tensors):
        self.queries, self.keys = queries, keys
        self.ahead = first_query - first_key
        self.first_key = first_key
        self.reach, self.chunk, self.origins = reach, chunk, origins
        self.tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        self.known = {}

    def to(self, *args, **kwargs):
        """The same rule with its tensors moved; called where layers stand on several devices."""
        sizes = (self.queries, self.keys, self.ahead + self.first_key, self.first_key)
        moved = BandMask(*sizes, self.reach, self.chunk, self.origins)
        moved.tensors = {name: tensor.to(*args, **kwargs) for name, tensor in self.tensors.items()}
        return moved

    def contiguous(self):
        """Itself: generation asks every mask for one without gaps."""
        return self

    def span(self, start, stop):
        """First and last + 1 of the keys that some query of start … stop - 1 may see."""
        first = 0 if self.reach is None else start + self.ahead - self.reach + 1
        first = first if self.origins is None else max(first, self.origins[start])
        return min(max(first, 0), self.keys - 1), min(stop + self.ahead, self.keys)

    def block(self, start, stop, device, first=0, last=None):
        """True where query start … stop - 1 sees key first … last - 1, `[B or 1, 1, t, k]`."""
        last = self.keys if last is None else last
        # Without tensors, blocks in the same place relative to their keys are one.
        place = (start - first, stop - first, last - first, str(device))
        if not self.tensors and place in self.known:
            return self.known[place]
        query = torch.arange(start, stop, device=device)[:, None] + self.ahead
        key = torch.arange(first, last, device=device)
        seen = key <= query
        if self.reach is not None:
            seen = seen & (query - key < self.reach)
        seen = self._narrowed(seen[None, None], query, key, slice(start, stop), slice(first, last))
        if not self.tensors and self.reach is not None:
            self.known[place] = seen
        return seen

    def _narrowed(self, seen, query, key, queries, keys):
        """`seen` less what padding, chunks and packed sequences hide."""
        padding, starts, segments = (self.tensors.get(name) for name in ("padding", "starts", "segments"))
        if padding is not None:
            seen = seen & padding.to(seen.device)[:, None, None, keys]
        if self.chunk:
            origin = starts.to(seen.device)[:, None, None, None]
            mine, its = (slots + self.first_key - origin for slots in (query, key))
            seen = seen & (mine.div(self.reach, rounding_mode="floor") == its.div(self.reach, rounding_mode="floor"))
        if segments is not None:
            segments = segments.to(seen.device)[:, None]
            seen = seen & (segments[..., queries, None] == segments[..., None, keys])
        return seen


def mask_rows(attention_mask, block, keys, device):
    """The rows of the queries in `block` of a mask, tensor or rule, over the first `keys` keys, `[B or 1, 1, t, S]`."""
    if isinstance(attention_mask, BandMask):
        return attention_mask.block(block.start, block.stop, device, last=keys)
    return attention_mask[:, :, block, :keys]


def keys_before(attention_mask, block, keys, causal=False):
    """How many of the `keys` keys the queries in `block` may see at most; `causal`: from the first key on."""
    if isinstance(attention_mask, BandMask):
        return attention_mask.span(block.start, block.stop)[1]
    return block.stop if causal else keys


def attend_in_bands(attend, query, key, value, band):
    """`attend(query, key, value, mask)` block of queries by block of queries, each over the keys it can see.

    `[B, H, T, d]`, `[B, K, S, d]`, `[B, K, S, v]` → `[B, T, H, v]`; `attend` gives (output, weights).
    """
    outputs, start = [], 0
    for rows in query.split(query_block(query.device), dim=2):
        stop = start + rows.shape[2]
        first, last = band.span(start, stop)
        mask = band.block(start, stop, query.device, first, last)
        (seen, key), (read, value) = (take_keys(states, first, last) for states in (key, value))
        outputs.append(attend(rows, seen, read, mask)[0])
        start = stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def take_keys(states, first, last):
    """Keys first … last - 1 of `[B, K, S, d]`, and all of them to take the next from."""
    return Span.apply(states, first, last) if torch.is_grad_enabled() else (states[:, :, first:last], states)


class Span(torch.autograd.Function):
    """`take_keys` where gradients are wanted: those of one span after the other are added up in a single tensor, where
    that of a slice is as large as all keys for each of them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(states, first, last):
        return states[:, :, first:last], states.view_as(states)

    @staticmethod
    def setup_context(ctx, inputs, output):
        states, first, last = inputs
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.keys = states.shape, slice(first, last)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, others):
        if gradient is not None:
            others = gradient.new_zeros(ctx.shape) if others is None else others
            others[:, :, ctx.keys].add_(gradient)
        return others, None, None


# Layers whose masks can be rules -> the field that says how far back they reach; None: to the first token.
REACHES = {
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    "full_attention": None,
    "indexed_attention": None,
}


def band_of(config, word, layer_idx, inputs_embeds, attention_mask, past_key_values, position_ids):
    """The rule for layers called `word`, of which `layer_idx` is the first, for `inputs_embeds` `[B, T, D]` and padding
    `[B, S]`; None where transformers' builder is to make a mask, or none is needed.

    That is: few queries, a backend that does not take blocks of booleans, scores with a bias of their own square,
    a graph that is being traced, nothing to hide but the future.
    """
    length, device = inputs_embeds.shape[1], inputs_embeds.device
    flat = attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2)
    # Asked first: a comparison of sizes would bind a traced graph to them.
    if is_traced() or length <= query_block(device) or not flat or not takes_bands(config, word):
        return None
    reach, chunk = REACHES[word] and getattr(config, REACHES[word]), word == "chunked_attention"
    sizes = _sizes(length, attention_mask, past_key_values, layer_idx)
    if sizes is None:
        return None
    first_query, keys, first_key = sizes
    tensors = _padding(attention_mask, first_key, keys, first_query + length, chunk, device)
    if attention_mask is None and past_key_values is None:
        tensors |= _packed(position_ids, inputs_embeds.shape[0])
        if chunk and "segments" in tensors:
            return None
    nothing = not any(part is not None for name, part in tensors.items() if name != "starts")
    if nothing and first_query == 0 and (reach is None or reach > keys == length):
        return None
    if chunk and tensors.get("starts") is None:
        tensors["starts"] = torch.zeros(1, dtype=torch.long, device=device)
    return BandMask(length, keys, first_query, first_key, reach, chunk, **tensors)


def sees_all(config, word, layer_idx, inputs_embeds, attention_mask, past_key_values):
    """Whether one query, `inputs_embeds` `[B, 1, D]`, sees every key that layers called `word` give it: no mask then.

    A cache of fixed size gives keys that are not there yet, and its masks are part of a compiled step.
    """
    if is_traced() or inputs_embeds.shape[1] != 1 or past_key_values is None:
        return False
    # Of the keys within its reach, a query in chunks sees those of its own chunk only.
    if word not in REACHES or word == "chunked_attention":
        return False
    if config._attn_implementation != "sdpa" or getattr(past_key_values, "is_compileable", False):
        return False
    first_query = past_key_values.get_query_offset(layer_idx)
    keys, first_key = past_key_values.get_mask_sizes(1, layer_idx)
    if isinstance(first_query, torch.Tensor) or first_key + keys != first_query + 1:
        return False
    reach = REACHES[word] and getattr(config, REACHES[word])
    if reach is not None and keys > reach:
        return False
    if attention_mask is None:
        return True
    # Elsewhere looking at a mask would wait for the device.
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2 or attention_mask.device.type != "cpu":
        return False
    attended = attention_mask[:, first_key:]
    return attended.shape[-1] == keys and bool(attended.all())


def takes_bands(config, word):
    """Whether layers called `word` compute from blocks of booleans alone."""
    causal = getattr(config, "is_causal", True)
    biased = config.position_embedding_type in ("alibi", "relative", "transformer_xl")
    return word in REACHES and config._attn_implementation == "sdpa" and causal and not biased


def _sizes(length, attention_mask, past_key_values, layer_idx):
    """Slot of the first query, number of keys, slot of the first key; None where they cannot be known."""
    if past_key_values is None:
        # A longer padding mask belongs to keys from elsewhere (prefix tuning).
        fits = attention_mask is None or attention_mask.shape[-1] == length
        return (0, length, 0) if fits else None
    sizes = (past_key_values.get_query_offset(layer_idx), *past_key_values.get_mask_sizes(length, layer_idx))
    if any(isinstance(size, torch.Tensor) and size.device.type == "meta" for size in sizes):
        return None
    # A cache of fixed size counts on the device: looked at once for a prompt, where nothing is traced.
    return tuple(int(size) for size in sizes)


def _padding(attention_mask, first_key, keys, last_query, chunk, device):
    """{"padding": `[B, S]`, "starts": `[B]` the number of padded tokens on the left}, without padding: {}."""
    if attention_mask is None:
        return {}
    attended = attention_mask.to(device=device, dtype=torch.bool)
    # Slots behind the last query are hidden in any case.
    if attended.shape[-1] >= min(first_key + keys, last_query) and bool(attended.all()):
        return {}
    starts = (attended.cumsum(dim=-1) == 0).sum(dim=-1) if chunk else None
    missing = max(first_key + keys - attended.shape[-1], 0)
    padding = torch.nn.functional.pad(attended, (0, missing))[:, first_key : first_key + keys]
    return {"padding": padding, "starts": starts}


def _packed(position_ids, batch):
    """{"segments": numbers of the packed sequences `[B, T]`, "origins": where they start}; {} for one per row."""
    starts = None if position_ids is None else starts_of_jumps(position_ids)
    if starts is None or not bool(starts[:, 1:].any()):
        return {}
    places = places_behind(starts)
    origins = (torch.arange(places.shape[1], device=places.device) - places).amin(0)
    return {"segments": starts.cumsum(dim=-1).expand(batch, -1), "origins": origins.tolist()}
