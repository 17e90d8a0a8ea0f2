// Reads [{config, contexts, dtype}] from standard input and prints what the explorer in the folder argv[2] makes of each:
// {whole, tensors, sizes, words} or {refused}; `foreign`: the config is another family's.

import { existsSync, readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const load = (name) => import(pathToFileURL(`${process.argv[2]}/${name}`));
const [py, { configOf, factsOf }, { modelTensors }, { layerCache, sizes }, { kinds_of, layer_words }, { place }, { sees }] =
  await Promise.all(["python.js", "facts.js", "tensors.js", "sizes.js", "words.js", "placement.js", "masks.js"].map(load));

// Another family's config.json is read by a module of its own.
const { imported } = existsSync(`${process.argv[2]}/families.js`) ? await load("families.js") : {};

function words(config) {
  const [kinds, differs] = py.call(kinds_of, config);
  const views = py.attr(config, "per_layer_config"), blocks = py.attr(config, "block_types");
  const mixers = py.attr(config, "mixer_types");
  return views.map((view, index) => ({
    ...py.toJson(py.call(layer_words, view, mixers[index], index, !["mixer_only", "shared_block"].includes(blocks[index]))),
    kind: kinds[index], differs: py.toJson(differs[index]),
  }));
}

process.on("uncaughtException", (error) => {
  process.stderr.write(error instanceof py.Instance ? `${error.cls.name}: ${py.text(error)}\n${error.trace ?? ""}` : error.stack);
  process.exit(1);
});

function placed(config, facts, ranks) {
  const caches = facts.layers.map((layer) => layerCache(layer, ranks.dtype));
  try {
    return place(config, facts, caches, ranks);
  } catch (error) {
    if (!(error instanceof py.Instance)) throw error;
    return py.text(error);
  }
}

const answers = py.parseJson(readFileSync(0, "utf8")).map(({ config: values, contexts, dtype, ranks, tokens, wants, foreign }) => {
  let config;
  try {
    config = foreign ? imported(values) : configOf(values);
  } catch (error) {
    if (!(error instanceof py.Instance)) throw error;
    return { refused: `${error.cls.name}: ${py.text(error)}` };
  }
  const answer = {}, facts = factsOf(config);
  if (wants.includes("whole")) answer.whole = py.toJson(py.call(py.attr(config, "to_dict")));
  if (wants.includes("written")) answer.written = py.toJson(py.call(py.attr(config, "to_diff_dict")));
  if (wants.includes("tensors")) answer.tensors = Object.fromEntries(modelTensors(facts).map(({ name, shape }) => [name, shape]));
  if (wants.includes("sizes")) answer.sizes = sizes(facts, { contexts, dtype });
  if (wants.includes("words")) answer.words = words(config);
  if (ranks) answer.placed = ranks.map((one) => placed(config, facts, one));
  if (tokens) {
    const places = Array.from({ length: tokens }, (_, place) => place);
    answer.masks = facts.layers.map((layer) => places.map((query) => places.map((key) => sees(layer, query, key))));
  }
  return answer;
});
process.stdout.write(JSON.stringify(answers));
