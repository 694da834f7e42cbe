/** Text -> token ids, as clip_core/text does it. */

import { cleaned } from "./cleaning.js";
import { Fault, quoted } from "./faults.js";

const MAXIMUM_CHARACTERS = 30_000;
const START_OF_TEXT = "<|startoftext|>";
const END_OF_TEXT = "<|endoftext|>";
const END_OF_WORD = "</w>";
const OPENAI_MERGES = 48_894;
// OpenAI's pattern for lower-cased text. Python ignores case in it, so a long s (ſ) is an s there, and the iota below a
// letter (U+0345) belongs to no word, since its capital is a letter and it is none.
const WORD =
  /<\|[sſ]tartoftext\|>|<\|endoftext\|>|'(?:[sſ]|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}\u0345]+/gu;

// A merges file writes each byte as a visible character. Printable Latin-1 stands for itself and comes first; the other
// bytes, in ascending order, are U+0100, U+0101 and so on. A byte's place in this order is its token id.
const isPrintable = (byte) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
const BYTES = Array.from({ length: 256 }, (_, byte) => byte);
const PRINTABLE = BYTES.filter(isPrintable);
const BYTE_ORDER = [...PRINTABLE, ...BYTES.filter((byte) => !isPrintable(byte))];
const BYTE_IDS = BYTES.map((byte) => BYTE_ORDER.indexOf(byte));
const BYTE_SYMBOLS = BYTE_ORDER.map((byte, id) =>
  String.fromCharCode(id < PRINTABLE.length ? byte : 256 + id - PRINTABLE.length),
);

/** The byte-pair tokenizer of OpenAI's kind; `merges` is the text of a merges file. */
export class BytePairTokenizer {
  constructor(merges) {
    const [header, ...lines] = merges.trimEnd().split("\n");
    if (!header.includes("#version")) {
      throw new Fault(`Line 1 of the merges is ${quoted(header)}, not a header with '#version'; give a merges file.`);
    }
    const ids = new Map();
    for (const end of ["", END_OF_WORD]) for (const symbol of BYTE_SYMBOLS) ids.set(symbol + end, ids.size);
    this.merged = new Map(); // of the key of a pair: the id of what it becomes
    lines.forEach((line, number) => {
      const pair = line.split(/\s+/).filter(Boolean);
      const [left, right] = pair.map((symbol) => ids.get(symbol));
      if (pair.length !== 2 || left === undefined || right === undefined || ids.has(pair.join(""))) {
        throw new Fault(
          `Line ${number + 2} of the merges is ${quoted(line)}, not a new merge of two tokens made above; give an ` +
            "unchanged merges file.",
        );
      }
      this.merged.set(keyOf(left, right), ids.size);
      ids.set(pair.join(""), ids.size);
    });
    this.start = ids.size;
    this.end = ids.size + 1;
    this.vocabularySize = ids.size + 2;
    this.padding = 0;
  }

  /** The token ids of a text, without start and end. */
  encode(text) {
    if ([...text].length > MAXIMUM_CHARACTERS) {
      throw new Fault(`A text has more than ${MAXIMUM_CHARACTERS} characters; shorten it.`);
    }
    if (/\p{Cs}/u.test(text))
      throw new Fault("A text has half a character (a lone surrogate), which is no text; remove it.");
    return (cleaned(text).toLowerCase().match(WORD) ?? []).flatMap((word) => this.#encodeWord(word));
  }

  /**
   * The row of a text for a model of `length` tokens: start, text, end, padding.
   *
   * @param truncate cut a text that is too long; otherwise it is refused.
   */
  row(text, length, truncate) {
    let tokens = this.encode(text);
    const special = tokens.find((token) => token === this.start || token === this.end);
    if (special !== undefined) {
      const spelling = special === this.start ? START_OF_TEXT : END_OF_TEXT;
      throw new Fault(
        `${quoted(text)} has ${spelling} in it, where a model takes a text to begin or end; remove that.`,
      );
    }
    if (tokens.length + 2 > length) {
      if (!truncate) {
        throw new Fault(
          `${quoted(text)} is too long: with start and end it has ${tokens.length + 2} tokens, and the model reads ` +
            `${length}; shorten it, or let long labels be cut.`,
        );
      }
      tokens = tokens.slice(0, length - 2);
    }
    return [this.start, ...tokens, this.end, ...Array(length - tokens.length - 2).fill(this.padding)];
  }

  #encodeWord(word) {
    if (word === START_OF_TEXT) return [this.start];
    if (word === END_OF_TEXT) return [this.end];
    let tokens = Array.from(new TextEncoder().encode(word), (byte) => BYTE_IDS[byte]);
    tokens[tokens.length - 1] += BYTE_SYMBOLS.length;
    for (;;) {
      // A merge makes a token that only later merges use, so the smallest one is always the next.
      let next = Infinity;
      for (let at = 0; at + 1 < tokens.length; at++) {
        next = Math.min(next, this.merged.get(keyOf(tokens[at], tokens[at + 1])) ?? Infinity);
      }
      if (next === Infinity) return tokens;
      const after = [];
      for (let at = 0; at < tokens.length; at++) {
        const merges = at + 1 < tokens.length && this.merged.get(keyOf(tokens[at], tokens[at + 1])) === next;
        after.push(merges ? next : tokens[at]);
        if (merges) at++;
      }
      tokens = after;
    }
  }
}

const keyOf = (left, right) => left * 2 ** 26 + right;

/** The merges of OpenAI's own file, of which the published models know the first alone. */
export function openaiMerges(text) {
  return text
    .split("\n")
    .slice(0, OPENAI_MERGES + 1)
    .join("\n");
}
