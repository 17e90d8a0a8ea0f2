// The gallery: finds, sorts and compares the models of models.js. What differs between two is what `zoo diff` says.
(() => {
  "use strict";
  const units = (value, base, names) => {
    let place = 0;
    while (Math.abs(value) >= base && place < names.length - 1) { value /= base; place += 1; }
    return (place === 0 || value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)))) + names[place];
  };
  const short = (value) => units(value, 1000, ["", "K", "M", "B", "T"]);
  const bytes = (value) => units(value, 1024, [" B", " KiB", " MiB", " GiB", " TiB"]);

  // Of a layer, in the order of the table of `zoo inspect`.
  const OF_A_LAYER = ["mixer", "context", "positions", "features", "residual", "mlp", "differs", "parameters",
    "cache_bytes_per_token", "state_bytes"];
  // Tables are the same in whatever order their keys stand.
  const ordered = (key, value) => (value && typeof value === "object" && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort(([one], [other]) => (one < other ? -1 : 1))) : value);
  const same = (one, other) => JSON.stringify(one ?? null, ordered) === JSON.stringify(other ?? null, ordered);
  const differing = (one, other, names) =>
    names.filter((name) => !same(one[name], other[name])).map((name) => [name, one[name] ?? null, other[name] ?? null]);
  const mechanism = (layer) => layer.mixer.split(" ")[0];
  const inCommon = (one, other) => OF_A_LAYER.filter((name) => same(one[name], other[name])).length;

  // Kinds of layers, each beside the kind of the other model that it has most in common with.
  function layersThatDiffer(one, other) {
    const theirs = [...other];
    const pairs = one.map((layer) => {
      let best = null;
      for (const kind of theirs) {
        const score = [mechanism(layer) === mechanism(kind) ? 1 : 0, inCommon(layer, kind)];
        if (!best || score[0] > best[0] || (score[0] === best[0] && score[1] > best[1])) best = [...score, kind];
      }
      if (best) theirs.splice(theirs.indexOf(best[2]), 1);
      return [layer, best ? best[2] : {}];
    });
    theirs.forEach((kind) => pairs.push([{}, kind]));
    return pairs
      .map(([here, there]) => ({
        layers: [here.layers ?? null, there.layers ?? null],
        rows: differing(here, there, OF_A_LAYER),
      }))
      .filter((row) => row.rows.length || row.layers[0] !== row.layers[1]);
  }

  // Fields that either model sets and in which they differ, and no value that is derived from these.
  function flagsThatDiffer(one, other) {
    const stated = [...new Set([...one.stated, ...other.stated])];
    return differing(one.flags, other.flags, stated);
  }

  function numbersOf(model) {
    const found = { layers: model.pattern, ...model.totals };
    for (const [length, held] of Object.entries(model.cache)) found[`cache at ${Number(length).toLocaleString("en")} tokens`] = held;
    for (const [length, count] of Object.entries(model.flops)) {
      for (const [way, value] of Object.entries(count)) found[`operations, ${way.replace("_", " ")}, at ${Number(length).toLocaleString("en")} tokens`] = value;
    }
    return found;
  }

  function difference(one, other) {
    const here = numbersOf(one), there = numbersOf(other);
    return {
      totals: differing(here, there, [...new Set([...Object.keys(here), ...Object.keys(there)])]),
      layers: layersThatDiffer(one.layers, other.layers),
      flags: flagsThatDiffer(one, other),
    };
  }

  const NAMES = { bytes: "weights", dtype: "stored in", window_bytes: "cache of windows", state_bytes: "cache of states",
    cache_bytes_per_token: "cache per token", max_position_embeddings: "longest context", hidden_size: "width", vocab_size: "vocabulary" };
  const EXACT = ["vocab_size", "hidden_size", "max_position_embeddings"];
  function said(name, value) {
    if (value === null || value === "" || (Array.isArray(value) && !value.length)) return "–";
    if (Array.isArray(value)) return value.join(", ");
    if (typeof value === "object") return Object.entries(value).map(([key, entry]) => `${key} ${JSON.stringify(entry)}`).join(", ") || "–";
    if (typeof value !== "number") return String(value);
    if (EXACT.includes(name)) return value.toLocaleString("en");
    if (name.startsWith("operations")) return units(value, 1000, [" ", " K", " M", " G", " T"]) + "FLOP";
    return name.includes("bytes") || name.startsWith("cache") ? bytes(value) : short(value);
  }
  const asSet = (name, value) => (value === null ? "–" : typeof value === "string" ? value : JSON.stringify(value));

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  function table(found, one, other) {
    const made = element("table"), head = made.createTHead().insertRow(), body = made.createTBody();
    ["", one.name, other.name].forEach((text) => head.append(element("th", text)));
    const room = (heading, rows, words) => {
      const line = body.insertRow();
      line.className = "zoo-room";
      const cell = element("th", heading);
      cell.colSpan = 3;
      line.append(cell);
      rows.forEach(([name, here, there]) => {
        const row = body.insertRow();
        [words === said ? NAMES[name] ?? name.replaceAll("_", " ") : name, words(name, here), words(name, there)].forEach((text) => row.append(element("td", text)));
      });
    };
    if (found.totals.length) room("whole model", found.totals, said);
    found.layers.forEach((row) => room(`layers ${row.layers[0] ?? "none"} | ${row.layers[1] ?? "none"}`, row.rows, said));
    if (found.flags.length) room("flags", found.flags.map(([name, ...pair]) => [name, ...pair]), asSet);
    return made;
  }

  function start() {
    const root = document.getElementById("zoo-gallery");
    if (!root || !window.zooModels) return;
    const models = new Map(window.zooModels.map((model) => [model.key, model]));
    const [filter, pair] = root.querySelectorAll("form");
    const list = root.querySelector(".zoo-cards"), cards = [...list.children];
    const buttons = [...root.querySelectorAll(".zoo-words button")];
    const result = root.querySelector(".zoo-result"), count = root.querySelector(".zoo-count");
    const base = root.dataset.base ?? "";

    function show() {
      const text = filter.find.value.trim().toLowerCase(), kind = filter.kind.value, by = filter.sort.value;
      const words = buttons.filter((button) => button.ariaPressed === "true").map((button) => button.textContent);
      let left = 0;
      for (const card of cards) {
        const here = card.dataset.words.split("|");
        card.hidden = !((!kind || card.dataset.kind === kind) && words.every((word) => here.includes(word)) &&
          (!text || `${card.dataset.key} ${card.textContent} ${card.dataset.words}`.toLowerCase().includes(text)));
        left += card.hidden ? 0 : 1;
      }
      const order = [...cards];
      if (by === "name") order.sort((one, other) => models.get(one.dataset.key).name.localeCompare(models.get(other.dataset.key).name));
      else if (by) order.sort((one, other) => one.dataset[by] - other.dataset[by]);
      list.append(...order);
      count.textContent = `${left} of ${cards.length} models`;
    }

    function compare() {
      const [one, other] = [models.get(pair.one.value), models.get(pair.other.value)];
      cards.forEach((card) => card.querySelector(".zoo-pick").classList.toggle("zoo-on-card", [pair.one.value, pair.other.value].includes(card.dataset.key)));
      result.replaceChildren();
      if (!one || !other) {
        const missing = [pair.one.value, pair.other.value].filter((key) => key && !models.has(key));
        result.append(element("p", missing.length ? `There is no model ${missing.join(", ")}.` : "Choose two by name, or press “compare” on two cards."));
        return;
      }
      const found = difference(one, other);
      const nothing = !found.totals.length && !found.layers.length && !found.flags.length;
      result.append(nothing ? element("p", `${one.name} and ${other.name} differ in nothing.`) : table(found, one, other));
      const drawings = element("div", undefined, "zoo-drawings");
      for (const model of [one, other]) {
        const image = element("img");
        image.src = `${base}drawings/${model.key}.svg`;
        image.alt = `Drawing of ${model.name}: ${model.pattern}`;
        drawings.append(image);
      }
      result.append(drawings);
    }

    filter.addEventListener("input", show);
    pair.addEventListener("input", compare);
    [filter, pair].forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
    buttons.forEach((button) => button.addEventListener("click", () => {
      button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
      show();
    }));
    cards.forEach((card) => card.querySelector(".zoo-pick").addEventListener("click", () => {
      if (!pair.one.value || pair.other.value) { pair.one.value = card.dataset.key; pair.other.value = ""; }
      else { pair.other.value = card.dataset.key; document.getElementById("zoo-diff").scrollIntoView(); }
      compare();
    }));
    const asked = new URLSearchParams(location.hash.slice(1));
    if (asked.has("one")) {
      pair.one.value = asked.get("one");
      pair.other.value = asked.get("other") ?? "";
      document.getElementById("zoo-diff").scrollIntoView();
    }
    show();
    compare();
  }

  window.zooDifference = (one, other) => {
    const models = new Map(window.zooModels.map((model) => [model.key, model]));
    return difference(models.get(one), models.get(other));
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
