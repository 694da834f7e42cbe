/**
 * The bytes of a picture file -> a picture as in resampling.js, with the pixels as they are stored.
 *
 * PNG is decoded here, to the bit. JPEG and WebP are decoded by the browser, without what could make it change colours
 * or turn the picture: profiles and EXIF are taken out before, as clip_core/image.py does.
 */

import { Fault } from "./faults.js";
import { decodePng, isPng, pngSize, startsWith } from "./png.js";
import { MAX_PIXELS } from "./preprocessing.js";
import { KNOWN_PICTURES } from "./known_pictures.js";

export const MAX_FILE_BYTES = 64 * 2 ** 20;

const OTHER_FORMATS = [
  ["a GIF", /^GIF8/],
  ["a TIFF", /^(II\*\0|MM\0\*)/],
  ["a BMP", /^BM/],
  ["a PNM", /^P[1-7]\s/],
  ["an AVIF picture", /^[^]{4}ftypavi[fs]/],
  ["a HEIC picture", /^[^]{4}ftyp(hei|mif|msf)/],
  ["a JPEG XL picture", /^(\xff\x0a|\0\0\0\x0cJXL )/],
  ["an SVG drawing", /^\s*<[?!s][^]*<svg\b|^\s*<svg\b/],
  ["a PDF document", /^%PDF/],
  ["an icon", /^\0\0[\x01\x02]\0/],
];

/** A decoded picture, with notes for whoever looks at its scores. */
export async function decode(bytes) {
  if (bytes.length === 0) throw new Fault("The picture is empty; give a PNG, JPEG or WebP file.");
  if (bytes.length > MAX_FILE_BYTES) {
    throw new Fault(
      `The picture has ${bytes.length} bytes, and the limit is ${MAX_FILE_BYTES}; save it in a smaller size.`,
    );
  }
  if (isPng(bytes)) {
    checkSize(...pngSize(bytes));
    return decodePng(bytes);
  }
  if (startsWith(bytes, [0xff, 0xd8, 0xff])) return decodedByBrowser("jpeg", plainJpeg(bytes));
  if (isWebp(bytes)) return decodedByBrowser("webp", plainWebp(bytes));
  const start = String.fromCharCode(...bytes.subarray(0, 1024));
  const other = OTHER_FORMATS.find(([, pattern]) => pattern.test(start));
  if (other) throw new Fault(`The picture is ${other[0]}, which this page does not read; save it as PNG.`);
  throw new Fault("The file is not a picture, or its header is damaged; give a PNG, JPEG or WebP file.");
}

function checkSize(width, height) {
  if (!(width * height > 0)) throw new Fault("The picture has no pixels; get the file again.");
  if (width * height > MAX_PIXELS) {
    throw new Fault(
      `The picture has ${width} x ${height} pixels; the limit is ${MAX_PIXELS}: save it in a smaller size.`,
    );
  }
}

/** A picture without alpha, decoded by the browser. */
async function decodedByBrowser(kind, { bytes, width, height }) {
  checkSize(width, height);
  const picture = await pixelsOf(kind, bytes);
  if (picture.width !== width || picture.height !== height) {
    throw new Fault(
      `The browser decoded ${picture.width} x ${picture.height} of ${width} x ${height} pixels; save the picture as PNG.`,
    );
  }
  const notes = [];
  if (!(await decodesAsKnown(kind))) {
    notes.push(
      `This browser decodes ${kind === "jpeg" ? "JPEG" : "WebP"} otherwise than clip does, so pixels may differ by a ` +
        "few levels and logits by a little; save the picture as PNG for clip's own numbers.",
    );
  }
  return { ...picture, notes };
}

async function pixelsOf(kind, bytes) {
  let bitmap;
  try {
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    bitmap = await createImageBitmap(new Blob([bytes], { type: `image/${kind}` }), options);
  } catch {
    throw new Fault("The picture cannot be decoded whole; it is cut short or damaged, get the file again.");
  }
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8ClampedArray(width * height * 3);
  for (let from = 0, at = 0; from < rgba.length; from += 4, at += 3) {
    data[at] = rgba[from];
    data[at + 1] = rgba[from + 1];
    data[at + 2] = rgba[from + 2];
  }
  return { mode: "RGB", width, height, bands: 3, data };
}

const checked = {};

/** Whether the browser gives Pillow's pixels of a known picture. Some change what is read from a canvas, too. */
function decodesAsKnown(kind) {
  checked[kind] ??= (async () => {
    const { base64, sum } = KNOWN_PICTURES[kind];
    const { data } = await pixelsOf(
      kind,
      Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)),
    );
    return checksum(data) === sum;
  })();
  return checked[kind];
}

/** Fowler, Noll and Vo's hash of 32 bits (FNV-1a). */
function checksum(bytes) {
  let hash = 0x811c9dc5;
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

/** A JPEG without comments and the segments of applications, but for the two that say how colours are stored. */
function plainJpeg(bytes) {
  const kept = [bytes.subarray(0, 2)];
  for (let at = 2; at + 4 <= bytes.length;) {
    while (bytes[at] === 0xff && bytes[at + 1] === 0xff) at++;
    const code = bytes[at + 1];
    if (bytes[at] !== 0xff || code < 0xc0) break;
    const end = at + 2 + ((bytes[at + 2] << 8) | bytes[at + 3]);
    if (code >= 0xc0 && code <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(code)) {
      if (bytes[at + 9] > 3)
        throw new Fault("The picture is a JPEG in CMYK, which this page does not read; save it in RGB.");
      const height = (bytes[at + 5] << 8) | bytes[at + 6];
      const width = (bytes[at + 7] << 8) | bytes[at + 8];
      return { bytes: joined([...kept, bytes.subarray(at)]), width, height };
    }
    if (code !== 0xfe && (code < 0xe1 || code > 0xef || code === 0xee)) kept.push(bytes.subarray(at, end));
    at = end;
  }
  throw new Fault("The picture is a JPEG without a frame; it is cut short or damaged, get the file again.");
}

function joined(parts) {
  const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}

const isWebp = (bytes) => /^RIFF[^]{4}WEBP/.test(String.fromCharCode(...bytes.subarray(0, 12)));

/** A WebP of one picture without alpha, profile and EXIF. The layout is that of RFC 9649. */
function plainWebp(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 12; at + 18 <= bytes.length;) {
    const kind = String.fromCharCode(...bytes.subarray(at, at + 4));
    const length = view.getUint32(at + 4, true);
    const content = at + 8;
    if (kind === "VP8X" && bytes[content] & 0x02) throw webpFault("is animated");
    if (kind === "VP8X" && bytes[content] & 0x10) throw webpFault("has an alpha channel");
    if (kind === "VP8L" || kind === "VP8 ") {
      const part = bytes.subarray(at, content + length + (length & 1));
      const head = new Uint8Array([...bytes.subarray(0, 4), 0, 0, 0, 0, ...bytes.subarray(8, 12)]);
      new DataView(head.buffer).setUint32(4, 4 + part.length, true);
      if (kind === "VP8 ") {
        const [width, height] = [6, 8].map((place) => view.getUint16(content + place, true) & 0x3fff);
        return { bytes: joined([head, part]), width, height };
      }
      const bits = view.getUint32(content + 1, true);
      if (bits & (1 << 28)) throw webpFault("has an alpha channel");
      return { bytes: joined([head, part]), width: 1 + (bits & 0x3fff), height: 1 + ((bits >> 14) & 0x3fff) };
    }
    at = content + length + (length & 1);
  }
  throw new Fault("The picture is a WebP without a frame; it is cut short or damaged, get the file again.");
}

function webpFault(what) {
  return new Fault(`The picture is a WebP that ${what}, which this page does not read; save it as PNG.`);
}
