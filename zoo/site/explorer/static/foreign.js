// What transformers' config classes stand on, beside what library.js has for ZooConfig, and wrappers of text models.

import { PreTrainedConfig, strict, StrictDataclassError } from "./library.js";
import * as py from "./python.js";

const { builtins } = py;
export const ConversionError = new py.PyClass("ConversionError", [builtins.ValueError]);
export const BAD_CONFIG = py.tuple([StrictDataclassError, builtins.ValueError, builtins.TypeError, builtins.KeyError, builtins.IndexError, builtins.AttributeError]);

// PreTrainedConfig with the other names of fields, configs inside of configs, and old names of layer types.
export const Foreign = new py.PyClass("PreTrainedConfig", [PreTrainedConfig]);
Foreign.fields = PreTrainedConfig.fields;
Foreign.ownFields = new Map();
const LAYERS = new Map([["mamba", "linear_attention"], ["attention", "full_attention"], ["deepseek_sparse_attention", "indexed_attention"], ["qwen_sparse_attention", "indexed_attention"]]);
Foreign.own.set("__setattr__", (self, name, value) => py.plainSetattr(self, self.cls.find("attribute_map").get(name) ?? name, value));
Foreign.own.set("__post_init__", (self, options = py.keywords([])) => {
  const given = new Map(options.map);
  for (const [key, cls] of self.cls.find("sub_configs_defaults") ?? []) {
    const value = builtins.getattr(self, key, null);
    if (value instanceof py.Instance) continue;
    py.setattr(self, key, py.call(cls, py.keywords([...value ?? []].filter(([name]) => name !== "model_type"))));
  }
  PreTrainedConfig.find("__post_init__")(self, py.keywords([...given]));
  const types = builtins.getattr(self, "layer_types", null);
  if (Array.isArray(types) && types.some((one) => LAYERS.has(one))) py.setattr(self, "layer_types", types.map((one) => LAYERS.get(one) ?? one));
  return null;
});
for (const name of ["validate_architecture", "validate_layer_type", "validate_token_ids"]) Foreign.own.set(name, () => null);
export const subConfig = (options) => options instanceof py.PyClass ? options : options.map.get("config_class");

// An object of a config class, with heads of a width of their own where the file gives one.
export function built(text, cls) {
  const width = text.get("hidden_size"), heads = text.get("num_attention_heads");
  let used = cls;
  if (py.truth(text.get("head_dim") ?? null) && Number.isInteger(width) && Number.isInteger(heads) && heads && width % heads) {
    used = strict(py.makeClass(cls.name, [cls], ($own) => $own.set("validate_architecture", () => null)));
  }
  return py.call(used, py.keywords([...py.deepcopy(text)]));
}
// A switch that may be None is off then.
export function switchOff(config) {
  for (const one of config.cls.fields.values()) {
    const name = one.dict.get("name"), type = one.dict.get("type");
    if (type instanceof py.Union && type.args.length === 2 && type.args[0] === py.bool && type.args[1] === null && builtins.getattr(config, name, null) === null) py.setattr(config, name, false);
  }
  return null;
}
export const oneLine = (error) => {
  let last = error;
  while (last.dict.get("__cause__")) last = last.dict.get("__cause__");
  return `${py.text(last).split(/\s+/).filter(Boolean).join(" ").replace(/\.$/, "")}.`;
};
