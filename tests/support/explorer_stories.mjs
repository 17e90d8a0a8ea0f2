// Reads {name, texts, spelled, ids, greedy} from standard input and prints what the model of that name of the explorer in the
// folder argv[2] makes of it: of each of `texts` what it computes, of `spelled` the ids, of `ids` the text, and how it goes on
// with greedy.text.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const load = (name) => import(pathToFileURL(`${process.argv[2]}/${name}`));
const [{ Llama, readSafetensors }, { Tokenizer }, stories] = await Promise.all(["llama.js", "tokenizer.js", "stories.js"].map(load));
const { name, texts, spelled, ids, greedy } = JSON.parse(readFileSync(0, "utf8")), tokenizer = new Tokenizer(stories.tokenizer);
const model = new Llama(stories.configs[name], readSafetensors(Uint8Array.from(Buffer.from(stories.weights[name], "base64"))));

const found = texts.map((text) => {
  const tokens = tokenizer.encode(text), steps = model.run(tokens.slice(0, 512));
  return {
    ids: tokens, logits: steps.map((step) => [...step.logits]),
    attention: steps.map((step) => step.attention.map((heads) => heads.map((shares) => [...shares]))),
    open: steps.map((step) => step.open.map((heads) => [...heads])),
    routed: steps.map((step) => step.routed.map((shares) => [...shares])),
    lens: steps.map((step) => step.streams.map((stream) => [...model.read(stream)])),
  };
});
let step = model.run(tokenizer.encode(greedy.text)).at(-1);
const written = [];
while (written.length < greedy.count) {
  written.push(step.logits.indexOf(Math.max(...step.logits)));
  step = model.step(written.at(-1));
}
process.stdout.write(JSON.stringify({ found, spelled: spelled.map((text) => tokenizer.encode(text)), decoded: ids.map((one) => tokenizer.decode(one)), written }));
