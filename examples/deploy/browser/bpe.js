/** Byte-pair encoding as OpenAI's: text -> token ids, as clip_core/text/bpe.py makes them. */

import { cleaned } from "./cleaning.js";
import { Fault, quoted } from "./faults.js";
import { Merges, Tokenizer } from "./tokenizer.js";

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
/** The visible character of each byte token, in the order of their ids. */
export const BYTE_SYMBOLS = BYTE_ORDER.map((byte, id) =>
  String.fromCharCode(id < PRINTABLE.length ? byte : 256 + id - PRINTABLE.length),
);

/** The ids of the bytes of a word, in that order. */
export const byteIds = (word) => Array.from(new TextEncoder().encode(word), (byte) => BYTE_IDS[byte]);

/** The byte-pair tokenizer of OpenAI's kind; `text` is that of a merges file. */
export class BytePairTokenizer extends Tokenizer {
  #merges = new Merges();

  constructor(text) {
    super();
    const [header, ...lines] = text.trimEnd().split("\n");
    if (!header.includes("#version")) {
      throw new Fault(`Line 1 of the merges is ${quoted(header)}, not a header with '#version'; give a merges file.`);
    }
    const ids = new Map();
    for (const end of ["", END_OF_WORD]) for (const symbol of BYTE_SYMBOLS) ids.set(symbol + end, ids.size);
    lines.forEach((line, number) => {
      const pair = line.split(/\s+/).filter(Boolean);
      const [left, right] = pair.map((symbol) => ids.get(symbol));
      if (pair.length !== 2 || left === undefined || right === undefined || ids.has(pair.join(""))) {
        throw new Fault(
          `Line ${number + 2} of the merges is ${quoted(line)}, not a new merge of two tokens made above; give an ` +
            "unchanged merges file.",
        );
      }
      this.#merges.add(left, right, ids.size);
      ids.set(pair.join(""), ids.size);
    });
    this.start = ids.size;
    this.end = ids.size + 1;
    this.padding = 0;
    this.vocabularySize = ids.size + 2;
    this.special = new Map([
      [this.start, START_OF_TEXT],
      [this.end, END_OF_TEXT],
    ]);
  }

  encodeText(text) {
    return (cleaned(text).toLowerCase().match(WORD) ?? []).flatMap((word) => this.#encodeWord(word));
  }

  #encodeWord(word) {
    if (word === START_OF_TEXT) return [this.start];
    if (word === END_OF_TEXT) return [this.end];
    const tokens = byteIds(word);
    tokens[tokens.length - 1] += BYTE_SYMBOLS.length;
    return this.#merges.apply(tokens);
  }
}

/** The merges of OpenAI's own file, of which the published models know the first alone. */
export function openaiMerges(text) {
  return text
    .split("\n")
    .slice(0, OPENAI_MERGES + 1)
    .join("\n");
}
