// What configuration_zoo imports: dataclasses, difflib, re, and the parts of transformers and huggingface_hub that a
// config is built with. As those libraries do it, no more than a config needs.

import * as py from "./python.js";

const { builtins } = py;
export const {
  isinstance, enumerate, zip, bool, any, getattr, max, list, next, set, len, int, sorted, dict, min, setattr, all,
  type, sum, tuple, range, str, vars, hasattr, divmod, property, repr, float, object, staticmethod, classmethod, callable,
  reversed, iter, abs, round, print, ValueError, TypeError, KeyError, AttributeError, IndexError, Exception, super_,
  NotImplementedError,
} = builtins;
export const { copy, deepcopy, cache } = py;
export const [Any, Callable, Iterable, Mapping, Sequence, Iterator] = Array(6).fill(new py.PyClass("Any", []));
export const TYPE_CHECKING = false;
export const suppress = null;
export const filter = (test, values) => [...py.iter(values)].filter((one) => py.truth(test === null ? one : py.call(test, one)));
export const map = (what, values) => [...py.iter(values)].map((one) => py.call(what, one));
export const frozenset = builtins.set;
const method = (name, plain, body, more = null) => py.def(name, { plain, rest: null, only: [], keywords: more, defaults: {} }, body);

// -- what a config says beside its fields --------------------------------------------------------------------------

// Warnings since the list was last emptied.
export const warnings = [];
const warn = (message) => {
  if (!warnings.includes(message)) warnings.push(message);
  return null;
};
export const logging = { get_logger: () => ({ warning: warn, warning_once: warn, info: () => null, isEnabledFor: () => true, error: warn }), INFO: 20 };
export const logger = logging.get_logger();

// -- dataclasses ---------------------------------------------------------------------------------------------------

export const MISSING = new py.Instance(new py.PyClass("MISSING", [py.object]));
export const Field = new py.PyClass("Field", [py.object]);
function field(options) {
  const given = options.map, made = new py.Instance(Field);
  for (const key of ["default", "default_factory"]) made.dict.set(key, given.has(key) ? given.get(key) : MISSING);
  made.dict.set("metadata", given.get("metadata") ?? new Map());
  return made;
}

// A dataclass's fields: its bases' and its own, under their names and with their types.
function gather(cls) {
  const found = new Map();
  for (const base of [...cls.mro].reverse()) for (const [name, one] of base.ownFields ?? []) found.set(name, one);
  const own = new Map();
  for (const [name, type] of cls.annotations) {
    if (typeof type === "string" && type.startsWith("ClassVar")) continue;
    const given = cls.own.get(name);
    const one = given instanceof py.Instance && given.cls === Field ? given
      : field(py.keywords(given === undefined ? [] : [["default", given]]));
    one.dict.set("name", name).set("type", type);
    if (one.dict.get("default") !== MISSING) cls.put(name, one.dict.get("default"));
    own.set(name, one);
    found.set(name, one);
  }
  cls.ownFields = own;
  cls.fields = found;
  return cls;
}
function decorated(cls) {
  gather(cls);
  cls.dataclass = (made, given) => {
    const named = given.at(-1) instanceof py.keywords([]).constructor ? given.pop().map : new Map();
    [...cls.fields.values()].forEach((one, place) => {
      const name = one.dict.get("name");
      made.dict.set(name, place < given.length ? given[place] : named.has(name) ? named.get(name) : one.dict.get("default"));
    });
  };
  return cls;
}
export const dataclass = (given) => given instanceof py.PyClass ? decorated(given) : decorated;
export const fields = (of) => [...(of instanceof py.PyClass ? of : of.cls).fields.values()];
export const dataclasses = { dataclass, field, fields };
export const SimpleNamespace = new py.PyClass("SimpleNamespace", [py.object]);
SimpleNamespace.own.set("__init__", (made, given) => {
  for (const [name, value] of given?.map ?? []) made.dict.set(name, value);
  return null;
});
export const wraps = () => (wrapped) => wrapped;
export const NamedTuple = null;

// -- typing, math, re, difflib -------------------------------------------------------------------------------------

export const get_args = (type) => py.tuple(type instanceof py.Union ? type.args.map((one) => one ?? py.none) : type instanceof py.Generic ? type.args : []);
export const math = { isfinite: (value) => Number.isFinite(Number(value)), log: Math.log, log2: Math.log2, sqrt: Math.sqrt, ceil: Math.ceil, floor: Math.floor, inf: Infinity, prod: (values) => values.reduce((a, b) => a * b, 1) };
const matched = (found) => {
  if (found === null) return null;
  const made = new py.Instance(Match);
  made.dict.set("groups", found.map((one) => one ?? null));
  return made;
};
const Match = new py.PyClass("Match", [py.object]);
Match.own.set("__getitem__", (self, number) => self.dict.get("groups")[number]);
export const re = {
  fullmatch: (pattern, text) => matched(text.match(new RegExp(`^(?:${pattern})$`, "u".repeat(0)))),
  search: (pattern, text) => matched(text.match(new RegExp(pattern))),
  sub: (pattern, by, text) => text.replace(new RegExp(pattern, "g"), by),
  findall: (pattern, text) => [...text.matchAll(new RegExp(pattern, "g"))].map((one) => one[1] ?? one[0]),
};

// The longest stretch that two texts have in common, difflib's choice among equals.
function longest(a, b, [alo, ahi, blo, bhi]) {
  let best = [alo, blo, 0], lengths = new Map();
  for (let i = alo; i < ahi; i++) {
    const now = new Map();
    for (let j = blo; j < bhi; j++) {
      if (a[i] !== b[j]) continue;
      const size = (lengths.get(j - 1) ?? 0) + 1;
      now.set(j, size);
      if (size > best[2]) best = [i - size + 1, j - size + 1, size];
    }
    lengths = now;
  }
  return best;
}
function ratio(a, b) {
  let equal = 0;
  const open = [[0, a.length, 0, b.length]];
  while (open.length) {
    const [alo, ahi, blo, bhi] = open.pop();
    const [i, j, size] = longest(a, b, [alo, ahi, blo, bhi]);
    if (!size) continue;
    equal += size;
    if (alo < i && blo < j) open.push([alo, i, blo, j]);
    if (i + size < ahi && j + size < bhi) open.push([i + size, ahi, j + size, bhi]);
  }
  return a.length + b.length ? 2 * equal / (a.length + b.length) : 1;
}
export function get_close_matches(word, known, options = null) {
  const { n = 3, cutoff = 0.6 } = Object.fromEntries(options?.map ?? []);
  const scored = [...py.iter(known)].map((one) => [ratio(one, word), one]).filter(([score]) => score >= cutoff);
  scored.sort(([a, one], [b, other]) => b - a || (one < other ? 1 : -1));
  return scored.slice(0, n).map(([, one]) => one);
}

// -- huggingface_hub: strict dataclasses ---------------------------------------------------------------------------

export const StrictDataclassError = new py.PyClass("StrictDataclassError", [py.Exception_]);
const strictError = (name, says) => {
  const cls = new py.PyClass(name, [StrictDataclassError]);
  cls.own.set("__init__", (self, options) => {
    const given = options.map, cause = given.get("cause");
    self.dict.set("args", py.tuple([`${says(given)}\n    ${cause.cls.name}: ${py.text(cause)}`]));
    return null;
  });
  return cls;
};
export const StrictDataclassFieldValidationError = strictError("StrictDataclassFieldValidationError",
  (given) => `Validation error for field '${given.get("field")}':`);
const StrictDataclassClassValidationError = strictError("StrictDataclassClassValidationError",
  (given) => `Class validation error for validator '${given.get("validator")}':`);

const failType = (message) => py.raise(py.made(TypeError, [message]));
const shown = (type) => type === py.none || type === null ? "NoneType" : type instanceof py.PyClass ? type.name : py.typeName(type);
const asShown = (type) => type instanceof py.PyClass ? `<class '${type.name}'>` : shown(type) === "NoneType" ? "<class 'NoneType'>" : py.typeName(type);
function checkType(name, value, type) {
  if (typeof type === "string" || type === Any) return;
  if (type instanceof py.Union) {
    const errors = [];
    for (const one of type.args) {
      try {
        checkType(name, value, one ?? py.none);
        return;
      } catch (error) {
        if (!py.caughtBy(error, [TypeError])) throw error;
        errors.push(py.text(error));
      }
    }
    failType(`Field '${name}' with value ${py.repr(value)} doesn't match any type in (${type.args.map(asShown).join(", ")}). Errors: ${errors.join("; ")}`);
  } else if (type instanceof py.Generic) {
    if (!isinstance(value, type.origin)) failType(`Field '${name}' expected a ${type.origin.name}, got ${py.typeOf(value).name}`);
    if (type.origin !== py.list) return;
    value.forEach((item, place) => {
      try {
        checkType(`${name}[${place}]`, item, type.args[0]);
      } catch (error) {
        if (!py.caughtBy(error, [TypeError])) throw error;
        py.raise(py.made(TypeError, [`Invalid item at index ${place} in list '${name}'`]), error);
      }
    });
  } else if (!isinstance(value, type) || type === py.int && typeof value === "boolean") {
    failType(`Field '${name}' expected ${type.name}, got ${py.typeOf(value).name} (value: ${py.repr(value)})`);
  }
}

const isRefusal = (error) => py.caughtBy(error, [ValueError, TypeError]);
export function strict(cls) {
  const before = cls.find("__setattr__") ?? py.plainSetattr;
  cls.put("__setattr__", (self, name, value) => {
    const one = cls.fields.get(name);
    try {
      if (one) {
        checkType(name, value, one.dict.get("type"));
        const validator = one.dict.get("metadata").get("validator");
        if (validator) py.call(validator, value);
      }
    } catch (error) {
      if (!isRefusal(error)) throw error;
      py.raise(py.call(StrictDataclassFieldValidationError, py.keywords([["field", name], ["cause", error]])), error);
    }
    return before(self, name, value);
  });
  cls.put("__init__", (self, options = py.keywords([])) => {
    const given = new Map(options.map);
    for (const one of cls.fields.values()) {
      const name = one.dict.get("name");
      py.setattr(self, name, given.has(name) ? given.get(name) : one.dict.get("default"));
      given.delete(name);
    }
    py.call(py.attr(self, "__post_init__"), py.keywords([...given]));
    const names = new Set(cls.mro.flatMap((base) => [...base.own.keys()]).filter((name) => name.startsWith("validate_")));
    for (const name of [...names].sort()) {
      try {
        const check = cls.find(name);
        (check.wrapped ?? check)(self);
      } catch (error) {
        if (!isRefusal(error)) throw error;
        py.raise(py.call(StrictDataclassClassValidationError, py.keywords([["validator", name], ["cause", error]])), error);
      }
    }
    return null;
  });
  return cls;
}

// -- transformers: PreTrainedConfig --------------------------------------------------------------------------------

export const PreTrainedConfig = new py.PyClass("PreTrainedConfig", [py.object]);
PreTrainedConfig.whenSubclassed = gather;
const string = new py.Union([py.str, null]), flag = new py.Union([py.bool, null]), table = new py.Union([py.dictType, null]);
for (const [name, type, value] of [
  ["transformers_version", string, null], ["architectures", new py.Union([new py.Generic(py.list, [py.str]), null]), null],
  ["output_hidden_states", flag, false], ["return_dict", flag, true], ["dtype", string, null],
  ["chunk_size_feed_forward", py.int, 0], ["is_encoder_decoder", py.bool, false], ["id2label", table, null],
  ["label2id", table, null], ["problem_type", string, null],
]) {
  PreTrainedConfig.annotations.set(name, type);
  PreTrainedConfig.own.set(name, value);
}
gather(PreTrainedConfig);
const base = PreTrainedConfig.own;
base.set("__annotations__", PreTrainedConfig.annotations);
base.set("attribute_map", new Map());
const GENERATION = [
  "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "temperature", "top_k", "top_p", "typical_p",
  "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
  "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id",
  "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
  "num_beam_groups", "diversity_penalty", "max_new_tokens", "num_assistant_tokens", "cache_implementation",
];
export const GenerationConfig = () => ({ to_dict: () => new Map(GENERATION.map((name) => [name, null])) });

base.set("__post_init__", method("__post_init__", ["self"], (self, kwargs) => {
  const dtype = kwargs.get("torch_dtype") ?? null;
  kwargs.delete("torch_dtype");
  if (dtype !== null && py.attr(self, "dtype") === null) py.setattr(self, "dtype", dtype);
  kwargs.delete("num_labels");
  if (self.dict.has("rope_parameters")) kwargs = py.call(py.attr(self, "convert_rope_params_to_dict"), py.keywords([...kwargs]));
  const layers = kwargs.get("per_layer_config") ?? null;
  for (const name of [...GENERATION, "name_or_path", "_commit_hash", "output_attentions", "attn_implementation",
    "experts_implementation", "per_layer_config", "model_type", "auto_map"]) kwargs.delete(name);
  for (const [name, value] of kwargs) py.setattr(self, name, value);
  if (layers !== null) py.setattr(self, "per_layer_config", layers);
  return null;
}, "kwargs"));

// Layers that differ: views of the config with a layer's own fields, made once for each set of them.
base.set("is_heterogeneous", new py.Property((self) => self.dict.has("_heterogeneity_spec")));
base.set("per_layer_attributes", new py.Property((self) => {
  const spec = self.dict.get("_heterogeneity_spec");
  return spec === undefined ? null : py.set([...spec.values()].flatMap((own) => [...own.keys()]));
}));
base.set("per_layer_config", new py.Property((self) => {
  const spec = self.dict.get("_heterogeneity_spec"), count = self.dict.get("num_hidden_layers");
  if (spec === undefined) return Array(count).fill(self);
  if (self.views?.spec !== spec) {
    self.views = { spec, made: Array.from({ length: count }, (_, index) => {
      const view = copy(self);
      view.dict.delete("_heterogeneity_spec");
      for (const [name, value] of spec.get(index) ?? []) py.setattr(view, name, value);
      return view;
    }) };
  }
  return self.views.made;
}, (self, given) => {
  self.dict.delete("_heterogeneity_spec");
  if (given === null) return;
  const spec = new Map();
  for (const [key, own] of given) {
    const differing = [...own].filter(([name, value]) => !py.eq(value, getattr(self, name, null)));
    if (differing.length) spec.set(Number(key), new Map(differing));
  }
  self.dict.set("_heterogeneity_spec", new Map([...spec].sort(([a], [b]) => a - b)));
}));
base.set("to_dict", method("to_dict", ["self"], (self) => {
  const found = new Map([...self.dict].filter(([name]) => !name.startsWith("_")).map(([name, value]) => [name, deepcopy(value)]));
  found.set("model_type", self.cls.find("model_type"));
  const spec = self.dict.get("_heterogeneity_spec");
  if (spec) {
    const digits = String(Math.max(...spec.keys())).length;
    found.set("per_layer_config", new Map([...spec].map(([key, own]) => [String(key).padStart(digits, "0"), deepcopy(own)])));
  }
  return found;
}));
base.set("to_diff_dict", method("to_diff_dict", ["self"], (self) => {
  const whole = py.call(py.attr(self, "to_dict"));
  const usual = (name) => PreTrainedConfig.fields.get(name)?.dict.get("default");
  return new Map([...whole].filter(([name, value]) => !PreTrainedConfig.fields.has(name) || !py.eq(value, usual(name))));
}));
base.set("from_dict", builtins.classmethod((cls, values) => py.call(cls, py.keywords([...values]))));

// What a mixin of transformers, translated like configuration_zoo, adds to its configs.
export function adopt(cls, mixin) {
  for (const [name, value] of mixin.own) if (!cls.own.has(name)) cls.put(name, value);
  return null;
}
export const register_layer_types = () => null;
// A sentence of a command of zoo.
export const UserError = new py.PyClass("UserError", [py.Exception_]);
export const os = {};
// A number as bfloat16 holds it: the upper half of float32, rounded to the nearest, ties to even.
function bfloat16(value) {
  const bits = new Uint32Array(new Float32Array([value]).buffer);
  bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(bits.buffer)[0];
}
export const torch = { bfloat16: "bfloat16", tensor: (value) => ({ item: () => bfloat16(value) }) };
export const sys = { modules: new Map() };
export const __name__ = "configuration_zoo";
