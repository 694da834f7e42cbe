/** What all tokenizers have in common: text -> a row of token ids, as clip_core/text makes them. */

import { Fault, quoted } from "./faults.js";

const MAXIMUM_CHARACTERS = 30_000;

/**
 * A tokenizer has `start`, `end` and `padding`, ids of tokens around a text, the first two of which may be null, and
 * `special`, id -> spelling of those that no text may spell out.
 */
export class Tokenizer {
  /** The token ids of a text, without start and end. */
  encode(text) {
    if ([...text].length > MAXIMUM_CHARACTERS) {
      throw new Fault(`A text has more than ${MAXIMUM_CHARACTERS} characters; shorten it.`);
    }
    if (/\p{Cs}/u.test(text)) {
      throw new Fault("A text has half a character (a lone surrogate), which is no text; remove it.");
    }
    return this.encodeText(text);
  }

  /**
   * The row of a text for a model of `length` tokens: start, text, end, padding.
   *
   * @param truncate cut a text that is too long; otherwise it is refused.
   */
  row(text, length, truncate) {
    const tokens = this.encode(text);
    const special = tokens.find((token) => this.special.has(token));
    if (special !== undefined) {
      throw new Fault(
        `${quoted(text)} has ${this.special.get(special)} in it, where a model takes a text to begin or end; remove that.`,
      );
    }
    const around = (this.start !== null) + (this.end !== null);
    if (tokens.length + around > length && !truncate) {
      throw new Fault(
        `${quoted(text)} is too long: with start and end it has ${tokens.length + around} tokens, and the model reads ` +
          `${length}; shorten it, or let long labels be cut.`,
      );
    }
    const row = [this.start, ...tokens.slice(0, length - around), this.end].filter((token) => token !== null);
    return [...row, ...Array(length - row.length).fill(this.padding)];
  }
}

/** Merges of pairs of tokens, in the order in which they are learnt: each makes a token that only later ones use. */
export class Merges {
  #ranks = new Map();
  #made = [];

  add(left, right, made) {
    this.#ranks.set(keyOf(left, right), this.#made.length);
    this.#made.push(made);
  }

  /** The tokens of a word once all merges are applied, the earliest first and from left to right. */
  apply(tokens) {
    for (;;) {
      const ranks = tokens.map((token, at) => this.#ranks.get(keyOf(token, tokens[at + 1])) ?? Infinity);
      const next = ranks.reduce((least, rank) => Math.min(least, rank), Infinity);
      if (next === Infinity) return tokens;
      const after = [];
      for (let at = 0; at < tokens.length; at++) {
        after.push(ranks[at] === next ? this.#made[next] : tokens[at]);
        if (ranks[at] === next) at++;
      }
      tokens = after;
    }
  }
}

const keyOf = (left, right = -1) => left * 2 ** 26 + right;
