/**
 * What `ftfy.fix_text` and `html.unescape` of Python make of a text, with one exception.
 *
 * ftfy also repairs texts whose bytes were read in a wrong encoding ("schÃ¶n" for "schön"), by a heuristic that is not
 * repeated here. A text that it could change is refused instead; some that it would leave alone are refused with them.
 */

import { Fault, quoted } from "./faults.js";

/** The cleaned text. */
export function cleaned(text) {
  return unescaped(unescaped(fixed(text)));
}

// ---------------------------------------------------------------------------------------------------------- entities

const NUMBER = /^&#(?:[xX]([0-9a-fA-F]+)|([0-9]+));?/;
const REFERENCE = /&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[A-Za-z][A-Za-z0-9]{1,31};?)/g;
const FIXED_REFERENCE = /&#?[0-9A-Za-z]{1,24};/g;
const windows1252 = new TextDecoder("windows-1252");

/** Python's `html.unescape`. */
function unescaped(text) {
  return text.replace(REFERENCE, (reference) => (reference[1] === "#" ? numbered(reference) : named(reference)));
}

/** The character of a number, with the characters behind it that are no part of it. */
function numbered(reference) {
  const found = NUMBER.exec(reference);
  const rest = reference.slice(found[0].length);
  const number = found[1] === undefined ? Number(found[2]) : Number(`0x${found[1]}`);
  return characterOf(number) + rest;
}

function characterOf(number) {
  if (number === 0 || number > 0x10ffff || (number >= 0xd800 && number <= 0xdfff)) return "\ufffd";
  if (number >= 0x80 && number <= 0x9f) return windows1252.decode(Uint8Array.of(number));
  const isControl = number < 0x20 && ![9, 10, 12, 13].includes(number);
  const isNoCharacter = (number >= 0xfdd0 && number <= 0xfdef) || (number & 0xfffe) === 0xfffe;
  return isControl || number === 0x7f || isNoCharacter ? "" : String.fromCodePoint(number);
}

const known = new Map();

/** What HTML makes of `&name` or `&name;`, by the browser's parser; a name may go on behind that of an entity. */
function named(reference) {
  if (!known.has(reference)) {
    // The letter in front keeps the parser from dropping white space that begins a document.
    const body = new DOMParser().parseFromString(`<body>x${reference}`, "text/html").body;
    known.set(reference, body.textContent.slice(1));
  }
  return known.get(reference);
}

/** ftfy's rule: whole entities with their semicolon, also in capitals where only that in small letters has a name. */
function fixedReference(reference) {
  if (reference.startsWith("&#")) {
    const character = NUMBER.test(reference) ? numbered(reference) : reference;
    return character.includes(";") ? reference : character;
  }
  if (isWhole(reference)) return named(reference);
  const small = reference.toLowerCase();
  const inCapitals = reference === reference.toUpperCase() && named(reference) === reference && isWhole(small);
  return inCapitals ? named(small).toUpperCase() : reference;
}

const isWhole = (reference) =>
  /^&[A-Za-z]/.test(reference) && (reference === "&semi;" || !named(reference).endsWith(";"));

// -------------------------------------------------------------------------------------------------------------- ftfy

const LATIN_LIGATURES = /[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06]/g;
const OTHER_WIDTHS = /[\uff01-\uffef]/g;
const TERMINAL_ESCAPES = /\x1b\[(?:\p{Nd}|;)*[a-zA-Z]/gu;
const CONTROLS = /[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g;

/** `ftfy.fix_text`, line by line; from the first line with a `<` on, entities are left alone. */
function fixed(text) {
  let entities = true;
  return text.replace(/[^\n]*\n|[^\n]+/g, (line) => {
    entities &&= !line.includes("<");
    return fixedLine(line, entities);
  });
}

function fixedLine(line, entities) {
  for (;;) {
    const before = line;
    if (entities) line = line.replace(FIXED_REFERENCE, fixedReference);
    refuseMisread(line);
    line = withoutC1(line);
    refuseMisread(line);
    line = line
      .replace(LATIN_LIGATURES, (letter) => (letter === "\ufb05" ? "\u017ft" : letter.normalize("NFKC")))
      .replace(OTHER_WIDTHS, (character) => character.normalize("NFKC"))
      .replaceAll("\u3000", " ")
      .replace(/[\u201c-\u201f]/g, '"')
      .replace(/[\u02bc\u2018-\u201b]/g, "'")
      .replace(/\r\n|[\r\u2028\u2029\x85]/g, "\n")
      .replace(TERMINAL_ESCAPES, "")
      .replace(CONTROLS, "")
      .normalize("NFC");
    if (line === before) return line;
  }
}

/** Control characters above U+007F as the characters that Windows-1252 has there. */
function withoutC1(text) {
  return text.replace(/[\x80-\x9f]/g, (control) => windows1252.decode(Uint8Array.of(control.charCodeAt(0))));
}

// ------------------------------------------------------------------------------------------- texts in wrong encodings

const CP437 =
  "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\xa0";
const LABELS = [
  ...["1252", "1251", "1250", "1253", "1254", "1257"].map((number) => `windows-${number}`),
  "iso-8859-2",
  "macintosh",
];
const HIGH = Uint8Array.from({ length: 128 }, (_, place) => place + 128);

// The bytes of one character of UTF-8, any of which ftfy lets have become U+FFFD or `?`, and U+00A0 a blank.
const SEQUENCE = [
  "[\\xc0-\\xdf]F|[\\xc2\\xc3]\\?",
  "[\\xe0-\\xef](?:FF|\\?F|F\\?)",
  "[\\xf0-\\xf4](?:FFF|\\?FF|F\\?F|FF\\?)",
];
const WITH_BLANKS = [
  ...SEQUENCE,
  "[\\xc2\\xc3\\xc5\\xce\\xd0\\xd9] ",
  "[\\xe2\\xe3] F|[\\xe0-\\xe3]F ",
  "\\xf0(?: FF|F F|FF )",
];

/** For each encoding that ftfy undoes: character -> the character of the number of its byte, and what to look for. */
const ENCODINGS = [
  [HIGH.reduce((characters, byte) => characters + String.fromCharCode(byte), ""), WITH_BLANKS],
  ...LABELS.map((label) => [new TextDecoder(label).decode(HIGH), label === "macintosh" ? SEQUENCE : WITH_BLANKS]),
  [CP437, WITH_BLANKS],
].map(([characters, sequences]) => ({
  sequence: new RegExp(sequences.join("|").replaceAll("F", "[\\x80-\\xbf\\x1a]"), "g"),
  bytes: new Map(
    Array.from(characters, (character, place) => {
      const byte = String.fromCharCode(128 + place);
      return [character === "\ufffd" ? byte : character, byte]; // a byte without a character stands for a control
    }),
  ),
}));

// What may look like it, and what ftfy leaves alone; in the brackets of two hyphens are characters that it is wary of.
const SMALL = "[\\p{Ll}--[ƒµœ]]";
const CAPITAL = "[\\p{Lu}--[ÂÃÎÐØÙŒ]]";
const ORDINARY = new RegExp(
  `^(?:${CAPITAL}?${SMALL}+ ?|[\\p{Ll}&&\\p{sc=Cyrl}]+»|${SMALL} [–—]|${CAPITAL}[\\p{Lu}--Œ]+|${CAPITAL} |` +
    "[’‘“„«–—][\\p{L}--[ªº]])$",
  "v",
);
const SUSPICIOUS = /[\p{Ll}--[a-z]][\p{Lu}--[A-Z]]|\ufffd/v; // after which nothing is ordinary

/** Refuse a text that holds what could be the bytes of one character of UTF-8, each read as a character of its own. */
function refuseMisread(text) {
  if (/^[\0-\x7f]*$/.test(text)) return;
  const characters = [...text];
  const suspicious = SUSPICIOUS.test(text);
  for (const { sequence, bytes } of ENCODINGS) {
    const read = characters.map(
      (one) => bytes.get(one) ?? (one <= "\x7f" ? one : one === "\ufffd" ? "\x1a" : "\u0100"),
    );
    for (const { index, 0: match } of read.join("").matchAll(sequence)) {
      const found = characters.slice(index, index + match.length).join("");
      if (!suspicious && ORDINARY.test(found)) continue;
      throw new Fault(
        `${quoted(text)} seems to have been read in a wrong encoding, at ${quoted(found)}, which clip repairs and this ` +
          "page does not; type the characters that are meant.",
      );
    }
  }
}
