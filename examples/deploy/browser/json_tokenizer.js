/**
 * Two kinds of tokenizers that a tokenizer.json describes: byte-pair encoding of bytes (Low-resource CLIP's) and BERT's
 * WordPiece (DistilBERT's). Other parts than theirs are refused by name.
 */

import { BYTE_SYMBOLS, byteIds } from "./bpe.js";
import { Fault, quoted } from "./faults.js";
import { Merges, Tokenizer } from "./tokenizer.js";

// GPT-2's words: a contraction, or letters, digits or other characters, each with the blank in front of it.
const BYTE_LEVEL_WORD =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

const CHINESE =
  /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;

/** The tokenizer of the text of a tokenizer.json. */
export class JsonTokenizer extends Tokenizer {
  #added;
  #normalize;
  #split;
  #encodeWord;

  constructor(definition) {
    super();
    const body = JSON.parse(definition);
    if (!["BPE", "WordPiece"].includes(body.model.type)) throw unknown("model", body.model);
    const added = body.added_tokens ?? [];
    const ids = new Map(Object.entries(body.model.vocab));
    for (const { content, id } of added) ids.set(content, id);
    this.vocabularySize = ids.size;
    [this.start, this.end] = aroundOf(body.post_processor);
    this.padding = body.padding.pad_id;
    this.special = new Map(Array.from(ids, ([token, id]) => [id, token]).filter(([id]) => this.#isAround(id)));
    this.#added = added.map(({ content }) => content);
    this.#normalize = normalizerOf(body.normalizer);
    this.#split = splitterOf(body.pre_tokenizer);
    this.#encodeWord = modelOf(body.model, body.pre_tokenizer, ids);
  }

  #isAround(id) {
    return id === this.start || id === this.end || id === this.padding;
  }

  encodeText(text) {
    const normal = this.#normalize(text);
    const written = this.#added.find((content) => text.includes(content) || normal.includes(content));
    if (written !== undefined) {
      throw new Fault(`${quoted(text)} has the special token ${quoted(written)} in it; remove that.`);
    }
    return this.#split(normal).flatMap(this.#encodeWord);
  }
}

function unknown(part, { type }) {
  return new Fault(
    `The model's tokenizer has the ${part} ${type}, or a setting of it, that this page does not know; use ` +
      "examples/deploy/onnxruntime_server.py.",
  );
}

/** The tokens that a post-processor puts in front of a text and behind it. */
function aroundOf(processor) {
  if (processor === null) return [null, null];
  const { type, single, special_tokens: tokens } = processor;
  const place = type === "TemplateProcessing" ? single.findIndex((piece) => "Sequence" in piece) : -1;
  if (place < 0 || place > 1 || single.length > place + 2) throw unknown("post-processor", processor);
  return [single[place - 1], single[place + 1]].map((piece) => {
    const found = piece === undefined ? [null] : tokens[piece.SpecialToken.id].ids;
    if (found.length !== 1) throw unknown("post-processor", processor);
    return found[0];
  });
}

function normalizerOf(normalizer) {
  if (normalizer === null) return (text) => text;
  if (normalizer.type !== "BertNormalizer") throw unknown("normalizer", normalizer);
  const { clean_text: clean, handle_chinese_chars: chinese, lowercase, strip_accents: strip } = normalizer;
  return (text) => {
    if (clean)
      text = text.replace(/[\0\ufffd]|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]/gu, "").replace(/\p{White_Space}/gu, " ");
    if (chinese) text = text.replace(CHINESE, " $& ");
    if (strip ?? lowercase) text = text.normalize("NFD").replace(/\p{Mn}/gu, "");
    if (lowercase) text = Array.from(text, (character) => character.toLowerCase()).join("");
    return text;
  };
}

/** The words of a text that has been normalized. */
function splitterOf(splitter) {
  if (splitter?.type === "BertPreTokenizer") {
    return (text) => text.match(/[!-/:-@[-`{-~]|\p{P}|[^\p{White_Space}\p{P}!-/:-@[-`{-~]+/gu) ?? [];
  }
  if (splitter?.type !== "ByteLevel" || splitter.use_regex === false) throw unknown("pre-tokenizer", splitter ?? {});
  const { add_prefix_space: blank } = splitter;
  return (text) => (blank && text !== "" && !text.startsWith(" ") ? ` ${text}` : text).match(BYTE_LEVEL_WORD) ?? [];
}

/** What makes token ids of a word. */
function modelOf(model, splitter, ids) {
  if (model.type === "WordPiece" && splitter.type === "BertPreTokenizer") return wordPiece(model, ids);
  const plain = [
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
  ];
  const isPlain = [...plain, "ignore_merges"].every((setting) => !model[setting]);
  if (model.type !== "BPE" || splitter.type !== "ByteLevel" || !isPlain) throw unknown("model", model);
  return bytePairs(model, ids);
}

/** The longest piece of the vocabulary first, and again with what is left of the word. */
function wordPiece({ unk_token: unknown, continuing_subword_prefix: prefix, max_input_chars_per_word: most }, ids) {
  return (word) => {
    const characters = [...word];
    const tokens = [];
    if (characters.length > most) return [ids.get(unknown)];
    for (let start = 0; start < characters.length;) {
      let end = characters.length;
      const piece = () => (start > 0 ? prefix : "") + characters.slice(start, end).join("");
      while (end > start && !ids.has(piece())) end--;
      if (end === start) return [ids.get(unknown)];
      tokens.push(ids.get(piece()));
      start = end;
    }
    return tokens;
  };
}

function bytePairs(model, ids) {
  const merges = new Merges();
  const made = new Set(BYTE_SYMBOLS);
  for (const merge of model.merges) {
    const [left, right] = typeof merge === "string" ? merge.split(" ") : merge;
    if (!made.has(left) || !made.has(right) || made.has(left + right)) {
      throw new Fault(
        `The model's tokenizer merges ${quoted(left)} and ${quoted(right)} out of order; export it again.`,
      );
    }
    made.add(left + right);
    merges.add(ids.get(left), ids.get(right), ids.get(left + right));
  }
  const letters = BYTE_SYMBOLS.map((symbol) => ids.get(symbol));
  if (letters.includes(undefined)) throw unknown("model", model);
  return (word) => merges.apply(byteIds(word).map((id) => letters[id]));
}
