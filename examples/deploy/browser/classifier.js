/** A model that `clip export` has written, and what it makes of a picture and labels. */

import { BytePairTokenizer, openaiMerges } from "./bpe.js";
import { Fault, quoted } from "./faults.js";
import { JsonTokenizer } from "./json_tokenizer.js";
import { metadataOf } from "./onnx.js";
import { checkPreprocessing } from "./preprocessing.js";

const FORMAT = 1; // of export.json
const PARTS = ["image", "text"];
const MOST_LABELS = 1000;
const BATCH = 16; // texts that are encoded at once

export class Classifier {
  #worker = null;
  #waiting = new Map();
  #texts = new Map(); // text -> its row of tokens and its features

  /**
   * Load what is in a folder beside the page.
   *
   * @param folder an address that ends with a slash.
   * @param told called with the bytes that have come, and with how many there are.
   */
  static async load(folder, told) {
    if (globalThis.crypto?.subtle === undefined) {
      throw new Fault("The browser checks files on this machine or over https alone; open the page at 127.0.0.1.");
    }
    const classifier = new Classifier();
    const description = await describe(folder);
    checkPreprocessing(description.preprocessing);
    const sizes = PARTS.map((part) => description.files[`${part}.onnx`].bytes);
    let done = 0;
    const files = {};
    for (const part of PARTS) {
      const name = `${part}.onnx`;
      files[part] = await fetched(folder, name, (bytes) => told((done += bytes), sizes[0] + sizes[1]));
      await checkDigest(files[part], name, description.files[name].sha256, "export the model again");
    }
    classifier.description = description;
    classifier.tokenizer = await tokenizerOf(files.text, description, folder);
    classifier.#start();
    for (const part of PARTS) await classifier.#ask("load", { part, bytes: files[part] }, [files[part].buffer]);
    return classifier;
  }

  /** A picture file's bytes as {pixels, small, features, width, height, notes}. */
  async look(bytes) {
    const wanted = this.description.preprocessing;
    const picture = await this.#ask("picture", { bytes, wanted });
    const features = await this.#ask("image", { pixels: picture.pixels, side: wanted.resolution });
    return { ...picture, features };
  }

  /**
   * How a picture fits labels, each put into the template: in their order {label, text, tokens, logit, probability}.
   *
   * @param picture what `look` gave.
   * @param truncate cut texts that are too long.
   */
  async compare(picture, labels, template, truncate) {
    const texts = this.#textsOf(labels, template);
    const { context_length: length } = this.description.tokenizer;
    const rows = texts.map((text) => this.tokenizer.row(text, length, truncate));
    const missing = [...new Set(rows.map(String))].filter((key) => !this.#texts.has(key));
    for (let at = 0; at < missing.length; at += BATCH) {
      const keys = missing.slice(at, at + BATCH);
      const features = await this.#ask("text", { rows: keys.map((key) => key.split(",").map(Number)) });
      keys.forEach((key, place) => this.#texts.set(key, normalized(features[place])));
    }
    const image = normalized(picture.features);
    const { logit_scale: scale, logit_bias: bias } = this.description;
    const logits = rows.map((row) => scale * dot(image, this.#texts.get(String(row))) + (bias ?? 0));
    if (!logits.every(Number.isFinite)) {
      throw new Fault("The model gives logits that are not finite numbers; look at its weights with clip inspect.");
    }
    const probabilities = bias === undefined ? softmax(logits) : logits.map((logit) => 1 / (1 + Math.exp(-logit)));
    return labels.map((label, place) => ({
      label,
      text: texts[place],
      tokens: rows[place],
      logit: logits[place],
      probability: probabilities[place],
    }));
  }

  /** The labels in the template, if both can be used. */
  #textsOf(labels, template) {
    if (labels.length === 0) throw new Fault("There are no labels; give one on each line.");
    if (labels.length > MOST_LABELS) {
      throw new Fault(`There are ${labels.length} labels; give at most ${MOST_LABELS}.`);
    }
    const twice = labels.find((label, place) => labels.indexOf(label) !== place);
    if (twice !== undefined) throw new Fault(`The label ${quoted(twice)} occurs more than once; give each label once.`);
    const places = template.split("{}").length - 1;
    if (places !== 1) {
      throw new Fault(`The template ${quoted(template)} has ${places} places for the label; it needs one {}.`);
    }
    return labels.map((label) => template.replace("{}", () => label));
  }

  #start() {
    // A worker of a blob obeys the page's Content-Security-Policy; one of a file would obey its own alone.
    const module = JSON.stringify(String(new URL("worker.js", import.meta.url)));
    const address = URL.createObjectURL(new Blob([`import ${module};`], { type: "text/javascript" }));
    this.#worker = new Worker(address, { type: "module" });
    this.#worker.onmessage = ({ data: { id, value, sentence } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (sentence === undefined) resolve(value);
      else reject(new Fault(sentence));
    };
    this.#worker.onerror = ({ message }) => {
      const fault = new Fault(`The page's worker stopped (${message ?? "a file of it is missing"}); reload the page.`);
      for (const { reject } of this.#waiting.values()) reject(fault);
      this.#waiting.clear();
    };
  }

  #ask(call, given, moved = []) {
    return new Promise((resolve, reject) => {
      const id = crypto.randomUUID();
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, call, given }, moved);
    });
  }
}

async function describe(folder) {
  const bytes = await fetched(folder, "export.json", () => {});
  let description;
  try {
    description = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new Fault("export.json is not JSON; export the model again.");
  }
  if (description.format !== FORMAT || description.to !== "onnx") {
    throw new Fault(
      `export.json is of format ${description.format} and tells of an export to ${description.to}, and this page reads ` +
        `format ${FORMAT} and onnx; run clip export MODEL --to onnx --image --text.`,
    );
  }
  for (const part of PARTS) {
    if (!(`${part}.onnx` in description.files)) {
      throw new Fault(`The export has no ${part}.onnx; run clip export MODEL --to onnx --image --text.`);
    }
    if (`${part}.onnx.data` in description.files) {
      throw new Fault(
        `${part}.onnx has its weights in another file, which is too large for a browser; export a smaller model.`,
      );
    }
  }
  return description;
}

/** The bytes of a file in a folder; `came` is called with the length of each piece. */
async function fetched(folder, name, came) {
  let answer;
  try {
    answer = await fetch(new URL(name, folder));
  } catch {
    throw new Fault(`${name} cannot be fetched from ${folder}; look whether the server still runs.`);
  }
  if (!answer.ok) {
    const remedy = `put what clip export writes into the folder ${new URL(folder).pathname}`;
    throw new Fault(`${name} is not there (the server answered ${answer.status}); ${remedy}.`);
  }
  const parts = [];
  try {
    for (const reader = answer.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      came(value.length);
    }
  } catch {
    throw new Fault(`${name} came only in part; reload the page.`);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function checkDigest(bytes, name, expected, remedy) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== expected) {
    throw new Fault(
      `${name} has the SHA-256 ${found.slice(0, 12)}…, not ${String(expected).slice(0, 12)}…; ${remedy}.`,
    );
  }
}

/** The tokenizer whose definition `text.onnx` carries, or else OpenAI's, whose vocabulary lies beside it. */
async function tokenizerOf(bytes, description, folder) {
  const { definition } = metadataOf(bytes, "text.onnx").tokenizer ?? {};
  const { start, end, padding, vocabulary, vocabulary_sha256: digest } = description.tokenizer;
  let text = definition;
  if (text === undefined || (text === null && vocabulary === undefined)) {
    throw new Fault("text.onnx does not say what its tokenizer is; export the model again.");
  }
  if (text === null) {
    const compressed = await fetched(folder, vocabulary, () => {});
    await checkDigest(compressed, vocabulary, digest, "it is not OpenAI's file, so get that");
    const decompressed = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("gzip"));
    text = openaiMerges(await new Response(decompressed).text());
  }
  const tokenizer = text.trimStart().startsWith("{") ? new JsonTokenizer(text) : new BytePairTokenizer(text);
  if (tokenizer.start !== start || tokenizer.end !== end || tokenizer.padding !== padding) {
    throw new Fault(
      `export.json says that texts end with the token ${end}, and with the tokenizer of text.onnx they end with ` +
        `${tokenizer.end}; export the model again.`,
    );
  }
  return tokenizer;
}

function normalized(features) {
  const length = Math.sqrt(dot(features, features));
  return Float64Array.from(features, (value) => value / length);
}

const dot = (left, right) => left.reduce((sum, value, place) => sum + value * right[place], 0);

function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - highest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
