/**
 * The bytes of a PNG file -> its pixels as Pillow gives them, in every browser alike: none of colour management,
 * premultiplied alpha or a canvas comes between. The format is that of the specification of PNG (ISO/IEC 15948).
 */

import { Fault } from "./faults.js";

const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] }; // of a type of colour
const SAMPLES = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
const MODES = { 0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA" };
// Where each pass of an interlaced picture begins, and its steps: left, top, right, down.
const PASSES = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
];
const DARK = 4095; // what 16 bits stay below that use none of the highest 4
const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

export const isPng = (bytes) => startsWith(bytes, [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

export function startsWith(bytes, start) {
  return start.every((byte, at) => bytes[at] === byte);
}

/** Width and height that a PNG declares. */
export function pngSize(bytes) {
  const view = viewOf(bytes);
  return bytes.length < 24 ? [0, 0] : [view.getUint32(16), view.getUint32(20)];
}

/** A picture as in resampling.js, with its palette in mode P, and with notes for whoever looks at it. */
export async function decodePng(bytes) {
  const { header, palette, compressed } = chunksOf(bytes);
  const { width, height, depth, colour, interlaced } = header;
  const passes = interlaced ? PASSES : [[0, 0, 1, 1]];
  const samples = SAMPLES[colour];
  const sizes = passes.map(([left, top, right, down]) => [
    Math.ceil((width - left) / right),
    Math.ceil((height - top) / down),
  ]);
  const rowBytes = (wide) => Math.ceil((wide * samples * depth) / 8);
  const total = sizes.reduce((sum, [wide, high]) => sum + (wide > 0 && high > 0 ? (rowBytes(wide) + 1) * high : 0), 0);
  const lines = await inflated(compressed, total);
  const data = new Uint8ClampedArray(width * height * samples);
  let at = 0;
  let highest = 0;
  passes.forEach(([left, top, right, down], number) => {
    const [wide, high] = sizes[number];
    if (wide < 1 || high < 1) return;
    const length = rowBytes(wide);
    let before = new Uint8Array(length);
    for (let y = 0; y < high; y++, at += length + 1) {
      const row = lines.subarray(at + 1, at + 1 + length);
      unfilter(lines[at], row, before, Math.max(1, (samples * depth) >> 3));
      before = row;
      const start = ((top + y * down) * width + left) * samples;
      for (let x = 0; x < wide; x++) {
        for (let sample = 0; sample < samples; sample++) {
          const value = valueAt(row, x * samples + sample, depth);
          if (value > highest) highest = value;
          data[start + x * right * samples + sample] = depth === 16 ? value >> 8 : value;
        }
      }
    }
  });
  const picture = { mode: MODES[colour], width, height, bands: samples, data, notes: [] };
  if (colour === 3) {
    if (3 * highest + 3 > palette.length) throw damaged("it uses a colour that its palette lacks");
    return { ...picture, palette };
  }
  if (colour === 0 && depth < 8) data.forEach((value, place) => (data[place] = (value * 255) / ((1 << depth) - 1)));
  if (colour === 0 && depth === 16 && highest <= DARK) {
    picture.notes.push(
      `The picture has values up to ${highest} of 65535, so it is nearly black; scale it to its whole range.`,
    );
  }
  return colour === 0 && depth === 1 ? { ...picture, mode: "1" } : picture;
}

function damaged(reason) {
  return new Fault(`The picture cannot be decoded whole: ${reason}; it is cut short or damaged, get the file again.`);
}

const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** What the pixels depend on: the header, the palette and the compressed lines. */
function chunksOf(bytes) {
  const view = viewOf(bytes);
  const compressed = [];
  let header = null;
  let palette = new Uint8Array(0);
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const end = at + 8 + length;
    if (end + 4 > bytes.length) throw damaged(`its part ${kind} is cut short`);
    const content = bytes.subarray(at + 8, end);
    const critical = (bytes[at + 4] & 0x20) === 0;
    if (critical && crc(bytes.subarray(at + 4, end)) !== view.getUint32(end)) {
      throw damaged(`the checksum of its part ${kind} is wrong`);
    }
    // The size that `pngSize` gives is that of a header in front of all else.
    if ((kind === "IHDR") !== (at === 8)) throw damaged("its header is not where that of a PNG is");
    if (kind === "IHDR") header = headerOf(content);
    else if (kind === "PLTE") palette = content;
    else if (kind === "IDAT") compressed.push(content);
    else if (kind === "IEND") break;
    else if (critical) throw damaged(`it has a part ${kind}, which no PNG has`);
    at = end + 4;
  }
  if (header === null || compressed.length === 0) throw damaged("it has no pixels");
  return { header, palette, compressed };
}

function headerOf(content) {
  if (content.length !== 13) throw damaged("its header has a wrong length");
  const view = viewOf(content);
  const [depth, colour, compression, filter, interlace] = content.subarray(8);
  if (!DEPTHS[colour]?.includes(depth) || compression || filter || interlace > 1) {
    throw damaged("its header says what no PNG may");
  }
  return { width: view.getUint32(0), height: view.getUint32(4), depth, colour, interlaced: interlace === 1 };
}

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** The first `total` bytes of what zlib has compressed; more is not asked of it. */
async function inflated(parts, total) {
  const result = new Uint8Array(total);
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  let at = 0;
  try {
    while (at < total) {
      const { done, value } = await reader.read();
      if (done) break;
      result.set(value.subarray(0, total - at), at);
      at += value.length;
    }
  } catch {
    throw damaged("its pixels do not decompress");
  }
  if (at < total) throw damaged("it ends before its last pixel");
  reader.cancel().catch(() => {}); // of what comes behind the last pixel, no one wants to know
  return result;
}

/** Undo the filter of one line, in place; `before` is the line above, and `step` the bytes of a pixel. */
function unfilter(filter, row, before, step) {
  for (let x = 0; filter > 0 && x < row.length; x++) {
    const left = x < step ? 0 : row[x - step];
    const up = before[x];
    if (filter === 1) row[x] += left;
    else if (filter === 2) row[x] += up;
    else if (filter === 3) row[x] += (left + up) >> 1;
    else if (filter === 4) row[x] += paeth(left, up, x < step ? 0 : before[x - step]);
    else throw damaged(`it has a line of the filter ${filter}, which no PNG has`);
  }
}

function paeth(left, up, corner) {
  const estimate = left + up - corner;
  const [toLeft, toUp, toCorner] = [Math.abs(estimate - left), Math.abs(estimate - up), Math.abs(estimate - corner)];
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}

/** The value at a place of a line, of `depth` bits. */
function valueAt(row, place, depth) {
  if (depth === 8) return row[place];
  if (depth === 16) return (row[2 * place] << 8) | row[2 * place + 1];
  const bit = place * depth;
  return (row[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}
