// Which keys a query sees in a layer, as modeling_zoo/attention_masks.py draws it.

// Whether the token in place `query` sees that in place `key`, by rule; what an indexer chooses depends on the text.
export function sees(layer, query, key) {
  if (layer.use_bidirectional_attention) return true;
  if (key > query) return false;
  const stride = layer.sparse_attention_stride;
  const near = {
    sliding_attention: () => query - key < layer.sliding_window,
    hybrid_sliding: () => query - key < layer.sliding_window,
    chunked_attention: () => Math.floor(query / layer.attention_chunk_size) === Math.floor(key / layer.attention_chunk_size),
  }[layer.layer_type];
  const pattern = {
    none: () => true,
    banded: () => query - key < stride,
    strided: () => query - key < stride || (query - key) % stride === 0,
    fixed: () => Math.floor(query / stride) === Math.floor(key / stride) || key % stride === stride - 1,
  }[layer.pattern];
  return (near === undefined || near()) && pattern();
}

// The share of pairs that are seen in a square of `step` queries and keys; of a large one a sample.
export function seenShare(layer, query, key, step) {
  const places = step <= 8 ? Array.from({ length: step }, (_, place) => place) : Array.from({ length: 8 }, (_, place) => Math.floor((place + 0.5) * step / 8));
  let count = 0;
  for (const q of places) for (const k of places) count += sees(layer, query * step + q, key * step + k);
  return count / places.length ** 2;
}

// How many tokens a picture of the mask has to show for its rule to be seen.
export function tokensShown(layer) {
  const size = layer.pattern !== "none" ? 3 * layer.sparse_attention_stride
    : { sliding_attention: 3 * layer.sliding_window, hybrid_sliding: 3 * layer.sliding_window, chunked_attention: 3 * layer.attention_chunk_size, indexed_attention: 3 * layer.index_topk }[layer.layer_type];
  return Math.max(size ?? 48, 12);
}
