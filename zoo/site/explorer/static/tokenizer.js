// Byte-pair encoding with bytes for what the vocabulary lacks, as the tokenizer.json of a Llama says it.

const SPACE = "▁";

export class Tokenizer {
  constructor({ model, added_tokens: added }) {
    this.ids = new Map(Object.entries(model.vocab));
    this.texts = [];
    for (const [text, id] of this.ids) this.texts[id] = text;
    this.ranks = new Map(model.merges.map((pair, rank) => [(Array.isArray(pair) ? pair : pair.split(" ")).join(" "), rank]));
    this.special = new Map(added.map(({ content, id }) => [content, id]));
    this.begin = this.special.get("<s>");
    const escaped = [...this.special.keys()].map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    this.between = new RegExp(`(${escaped.join("|")})`);
  }

  // Text -> ids, the first of them the beginning of a text.
  encode(text) {
    const found = [this.begin];
    for (const part of text.split(this.between)) {
      if (this.special.has(part)) found.push(this.special.get(part));
      else if (part !== "") found.push(...this.merged(this.symbols(SPACE + part.replaceAll(" ", SPACE))));
    }
    return found;
  }

  // One piece for each character that the vocabulary has, its bytes for any other.
  symbols(text) {
    return [...text.toWellFormed?.() ?? text].flatMap((one) => this.ids.has(one) ? [one] : bytesOf(one).map((byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`));
  }

  // The pair that was merged first in training is merged first, of equal ones the leftmost.
  merged(pieces) {
    for (;;) {
      let best = Infinity, place = -1;
      for (let index = 0; index + 1 < pieces.length; index++) {
        const rank = this.ranks.get(`${pieces[index]} ${pieces[index + 1]}`);
        if (rank < best) [best, place] = [rank, index];
      }
      if (place < 0) return pieces.map((piece) => this.ids.get(piece));
      pieces.splice(place, 2, pieces[place] + pieces[place + 1]);
    }
  }

  // Ids -> text; special tokens are left out.
  decode(ids) {
    const bytes = [];
    for (const id of ids) {
      const text = this.texts[id];
      if (this.special.has(text)) continue;
      const byte = /^<0x([0-9A-F]{2})>$/.exec(text);
      bytes.push(...byte ? [parseInt(byte[1], 16)] : bytesOf(text.replaceAll(SPACE, " ")));
    }
    return new TextDecoder().decode(new Uint8Array(bytes)).replace(/^ /, "");
  }

  // A token as a reader can see it.
  shown(id) {
    return this.texts[id].replaceAll(SPACE, "␣").replace("\n", "⏎");
  }
}

const bytesOf = (text) => [...new TextEncoder().encode(text)];
