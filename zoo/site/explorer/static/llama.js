// A Llama, with or without experts and gates, in plain numbers, one token at a time; everything on the way is kept to be looked at.
//
//   h = E[token]
//   for each layer   h += W_o · attention(norm(h));   h += W_down · (silu(W_gate n) · W_up n),  n = norm(h)
//   logits = E · norm(h)
//
// With experts the second is Σ weight_e · expert_e(n) over those that the router scores best; with gates each head's share
// of the attention is multiplied by a sigmoid before W_o.

// The tensors of a safetensors file: {name: {shape, data}}, float32.
export function readSafetensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), length = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))), found = {};
  delete header.__metadata__;
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    if (dtype !== "F32") throw new Error(`${name} is stored as ${dtype}; this page reads F32.`);
    found[name] = { shape, data: new Float32Array(bytes.slice(8 + length + from, 8 + length + to).buffer) };
  }
  return found;
}

// W x for W [rows, columns].
function product({ shape: [rows, columns], data }, x) {
  const found = new Float64Array(rows);
  for (let row = 0; row < rows; row++) {
    let sum = 0;
    for (let column = 0, at = row * columns; column < columns; column++, at++) sum += data[at] * x[column];
    found[row] = sum;
  }
  return found;
}

// Rows of one of the matrices [experts, rows, columns].
function part({ shape: [, rows, columns], data }, expert, from, count) {
  const start = (expert * rows + from) * columns;
  return { shape: [count, columns], data: data.subarray(start, start + count * columns) };
}

// W_down · (silu(W_gate n) · W_up n), and the gate silu(W_gate n).
function feed(gateWeights, upWeights, downWeights, n) {
  const up = product(upWeights, n), gate = product(gateWeights, n).map((value) => value / (1 + Math.exp(-value)));
  return { fed: product(downWeights, gate.map((value, channel) => value * up[channel])), gate };
}

export function softmax(values, temperature = 1) {
  const most = values.reduce((one, other) => Math.max(one, other), -Infinity);
  const powers = Float64Array.from(values, (value) => Math.exp((value - most) / temperature));
  const sum = powers.reduce((one, other) => one + other, 0);
  return powers.map((power) => power / sum);
}

export class Llama {
  constructor(config, tensors) {
    this.config = config;
    this.tensors = tensors;
    this.layers = Array.from({ length: config.num_hidden_layers }, (_, index) => this.layerOf(index));
    this.reset();
  }

  layerOf(index) {
    const inside = (name) => this.tensors[`model.layers.${index}.${name}`], named = (name) => inside(`${name}.weight`);
    return {
      attnNorm: named("input_layernorm") ?? named("attn_norm"), mlpNorm: named("post_attention_layernorm") ?? named("mlp_norm"),
      outputGate: named("self_attn.output_gate.g_proj"), router: named("mlp.gate"),
      gateUp: inside("mlp.experts.gate_up_proj"), downs: inside("mlp.experts.down_proj"),
      q: named("self_attn.q_proj"), k: named("self_attn.k_proj"), v: named("self_attn.v_proj"), o: named("self_attn.o_proj"),
      gate: named("mlp.gate_proj"), up: named("mlp.up_proj"), down: named("mlp.down_proj"),
    };
  }

  // Forgets every token.
  reset() {
    this.length = 0;
    this.caches = this.layers.map(() => ({ keys: [], values: [] }));
  }

  norm(x, { data }) {
    const square = x.reduce((sum, value) => sum + value * value, 0) / x.length;
    const scale = 1 / Math.sqrt(square + (this.config.rms_norm_eps ?? this.config.norm_eps));
    return Float64Array.from(x, (value, channel) => value * scale * data[channel]);
  }

  // Channels j and j + d/2 of every head turn by position · theta^(-2j/d).
  rotate(x, position) {
    const width = this.config.head_dim, half = width / 2, theta = this.config.rope_parameters.rope_theta;
    for (let start = 0; start < x.length; start += width) {
      for (let j = 0; j < half; j++) {
        const angle = position * theta ** (-2 * j / width), cos = Math.cos(angle), sin = Math.sin(angle);
        const one = x[start + j], other = x[start + half + j];
        x[start + j] = one * cos - other * sin;
        x[start + half + j] = other * cos + one * sin;
      }
    }
    return x;
  }

  // One more token: {logits, attention [layer][head] over all tokens so far, streams [0 … layers], gates [layer], open
  // [layer][head], routed [layer][expert]}; the last two where the model has such gates and experts.
  step(token) {
    const { hidden_size: width } = this.config, table = this.tensors["model.embed_tokens.weight"];
    let h = Float64Array.from(table.data.subarray(token * width, (token + 1) * width));
    const seen = { token, attention: [], streams: [h], gates: [], open: [], routed: [] };
    this.layers.forEach((layer, index) => {
      const { output, weights, open } = this.attend(layer, this.caches[index], this.norm(h, layer.attnNorm));
      h = h.map((value, channel) => value + output[channel]);
      const n = this.norm(h, layer.mlpNorm);
      const { fed, gate, routed } = layer.router ? this.route(layer, n) : feed(layer.gate, layer.up, layer.down, n);
      h = h.map((value, channel) => value + fed[channel]);
      seen.attention.push(weights);
      seen.streams.push(h);
      seen.gates.push(gate);
      if (open) seen.open.push(open);
      if (routed) seen.routed.push(routed);
    });
    this.length += 1;
    return { ...seen, logits: this.read(h) };
  }

  // The experts that the router scores best, each with its share; gates are those of all experts, 0 of the others.
  route(layer, n) {
    const scores = softmax(product(layer.router, n)), best = top(scores, this.config.num_experts_per_tok), [experts, width] = layer.downs.shape;
    const sum = this.config.norm_topk_prob ? best.reduce((all, [, score]) => all + score, 0) : 1, inner = layer.downs.shape[2];
    const routed = new Float64Array(experts), gate = new Float64Array(experts * inner), fed = new Float64Array(width);
    for (const [expert, score] of best) {
      const said = feed(part(layer.gateUp, expert, 0, inner), part(layer.gateUp, expert, inner, inner), part(layer.downs, expert, 0, width), n);
      routed[expert] = score / sum;
      gate.set(said.gate, expert * inner);
      said.fed.forEach((value, channel) => fed[channel] += routed[expert] * value);
    }
    return { fed, gate, routed };
  }

  attend(layer, cache, x) {
    const { num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: width } = this.config;
    const query = this.rotate(product(layer.q, x), this.length);
    cache.keys.push(this.rotate(product(layer.k, x), this.length));
    cache.values.push(product(layer.v, x));
    const mixed = new Float64Array(heads * width), weights = [];
    for (let head = 0; head < heads; head++) {
      const shared = Math.floor(head / (heads / kvHeads)) * width, own = head * width;
      const scores = cache.keys.map((key) => {
        let sum = 0;
        for (let channel = 0; channel < width; channel++) sum += query[own + channel] * key[shared + channel];
        return sum / Math.sqrt(width);
      });
      const shares = softmax(scores);
      shares.forEach((share, place) => {
        for (let channel = 0; channel < width; channel++) mixed[own + channel] += share * cache.values[place][shared + channel];
      });
      weights.push(shares);
    }
    const open = layer.outputGate && product(layer.outputGate, x).map((value) => 1 / (1 + Math.exp(-value)));
    return { output: product(layer.o, open ? mixed.map((value, channel) => value * open[Math.floor(channel / width)]) : mixed), weights, open };
  }

  // What a stream would predict if it were the last: the logit lens; after the last layer it is the model's own answer.
  read(stream) {
    const head = this.tensors["lm_head.weight"] ?? this.tensors["model.embed_tokens.weight"];
    return product(head, this.norm(stream, this.tensors["model.norm.weight"]));
  }

  // Every token of a text from the start.
  run(tokens) {
    this.reset();
    return tokens.map((token) => this.step(token));
  }
}

// The most probable tokens: [[id, probability]].
export const top = (probabilities, count) => [...probabilities.entries()].sort((one, other) => other[1] - one[1]).slice(0, count);

// A token drawn at a temperature, the most probable at 0.
export function draw(logits, temperature, random = Math.random) {
  if (temperature === 0) return top(logits, 1)[0][0];
  let left = random();
  const shares = softmax(logits, temperature);
  for (let id = 0; id < shares.length; id++) {
    left -= shares[id];
    if (left <= 0) return id;
  }
  return shares.length - 1;
}
