// Configs of other families -> ZooConfig, by transformers' own config classes and the families' own rules, translated:
// what stands between two @ is written by families.py.

import { BAD_CONFIG, built, ConversionError, Foreign, oneLine, subConfig, switchOff } from "./foreign.js";
import { @library@ } from "./library.js";
import * as py from "./python.js";
import { ZooConfig, UnreadField, is_read } from "./rules.js";

const TIE = "tie_word_embeddings";
// What transformers' class of a model around a text model says of that.
const wrappers = @wrappers@;
const schemes = @schemes@;

// All of it, made when the first file is brought.
function make() {
  const isKnown = (name) => Object.hasOwn(FAMILIES, name);
  const knownFamilies = () => Object.keys(FAMILIES);
  const defaultTextModel = (wrapper, key = "text_config") => wrappers[wrapper]?.parts[key] ?? null;
  const standsAtTheTop = (raw) => wrappers[raw.get("model_type")]?.top ?? false;
  const canTie = (wrapper) => wrappers[wrapper]?.ties ?? true;
  const shapesLogits = (wrapper) => wrappers[wrapper]?.shapes ?? true;
  // The page reckons language models, whatever class a file names.
  const headOf = () => "ZooForCausalLM";
  const labelsOf = () => py.dict([]);
  const classOf = (name, family) => family.cls;
  const mapping = new Map();
@lines@
  const CLASSES = { @classes@ };
  for (const [name, one] of Object.entries(CLASSES)) mapping.set(name, one);
  const FAMILIES = { @families@ };

  function familyOf(name) {
    if (name.includes("+")) return around(...name.split("+"));
    if (isKnown($file(name))) return FAMILIES[$file(name)];
    return py.raise(py.made(ConversionError, [`model_type ${py.repr(name)} is not known. ${$nearest(name)}`]));
  }
  // The family of a wrapper without a file of its own.
  function around(wrapper, place) {
    const cut = place.lastIndexOf("."), inner = place.slice(cut + 1), text = familyOf($known(inner));
    return {
      ...text, section: cut < 0 ? "text_config" : place.slice(0, cut), cls: CLASSES[inner] ?? text.cls,
      ties_at_top: !(wrappers[wrapper]?.whole ?? false),
      prepare: (keys) => textAlone(text.prepare, wrapper, keys),
      derive: (theirs) => py.call($around, text, wrapper, theirs),
    };
  }
  return (values) => {
    const raw = py.fromJson(values), name = py.call($type, raw);
    const config = py.call($import, withoutScheme(raw), name, familyOf(name), py.dict([]));
    config.dict.set("source_config", null);
    return config;
  };
}

function isTied(whole, text) {
  const said = (value) => value === undefined || value === null ? 0 : value ? 2 : 1;
  const wrapper = wrappers[whole.get("model_type")];
  if (!wrapper) return py.truth(whole.get(TIE) ?? py.builtins.getattr(text, TIE, false));
  return wrapper.tied[said(whole.get(TIE))][said(whole.get(wrapper.place)?.get?.(TIE))];
}
function textAlone(prepare, wrapper, text) {
  const own = new Map([...text].filter(([key]) => !(wrappers[wrapper]?.others ?? []).includes(key)));
  return prepare ? py.call(prepare, own) : own;
}
function withoutScheme(raw) {
  const plain = (part) => new Map([...part].filter(([key]) => !schemes.includes(key)));
  return new Map([...plain(raw)].map(([key, value]) => [key, value instanceof Map ? plain(value) : value]));
}

let made = null;
// config.json of any family, from parseJson -> ZooConfig; throws its refusal.
export const imported = (values) => (made ??= make())(values);
