/** A decoded picture -> pixels float32 [3, r, r], as clip_core/preprocess.py makes them, bit for bit. */

import { Fault } from "./faults.js";
import { FILTERS, resize } from "./resampling.js";

export const MAX_PIXELS = 64 * 2 ** 20;

/** Refuse what `preprocess` cannot do; `wanted` is what export.json has under `preprocessing`. */
export function checkPreprocessing(wanted) {
  if (wanted.in_graph) {
    throw new Fault(
      "The model's graph preprocesses pictures itself, and so does this page; export it without --preprocessing.",
    );
  }
  const known = {
    resize: ["shortest", "squash"],
    interpolation: Object.keys(FILTERS),
    divisor: [255],
    channels: ["red,green,blue"],
  };
  for (const [key, values] of Object.entries(known)) {
    if (!values.includes(key === "channels" ? String(wanted[key]) : wanted[key])) {
      throw new Fault(
        `The model wants ${JSON.stringify(wanted[key] ?? null)} as the ${key} of its preprocessing, and this page ` +
          `knows ${values.join(" and ")} alone; use examples/deploy/onnxruntime_server.py, or a newer page.`,
      );
    }
  }
}

/**
 * One picture as {pixels, small}: what the model gets, float32 [3, r, r], and the same as bytes [r, r, 3].
 *
 * @param picture as in resampling.js, with {palette}, bytes [n, 3], in mode P.
 */
export function preprocess(picture, wanted) {
  const side = wanted.resolution;
  const [width, height] = resizedSize(picture.width, picture.height, wanted);
  const small = rgb(cropped(resize(picture, width, height, wanted.interpolation), side));
  const pixels = new Float32Array(3 * side * side);
  for (let channel = 0, at = 0; channel < 3; channel++) {
    const mean = Math.fround(wanted.mean[channel]);
    const deviation = Math.fround(wanted.deviation[channel]);
    for (let from = channel; from < small.length; from += 3, at++) {
      const value = Math.fround(small[from] / 255); // each step is rounded to float32
      pixels[at] = Math.fround(value - mean) / deviation;
    }
  }
  return { pixels, small };
}

/** Width and height once the shorter side has the model's resolution, the longer one rounded down; or once both have. */
function resizedSize(width, height, { resolution, resize }) {
  if (resize === "squash") return [resolution, resolution];
  const long = Math.trunc((resolution * Math.max(width, height)) / Math.min(width, height));
  if (resolution * long > MAX_PIXELS) {
    throw new Fault(
      `A picture of ${width} x ${height} pixels is too long and narrow: resized to ${resolution} along its shorter ` +
        `side it has ${resolution * long} pixels, and the limit is ${MAX_PIXELS}; crop it first.`,
    );
  }
  return width <= height ? [resolution, long] : [long, resolution];
}

/** The middle of a picture, `side` pixels along each side. */
function cropped(picture, side) {
  const { width, height, bands, data } = picture;
  const left = roundedHalfToEven((width - side) / 2);
  const top = roundedHalfToEven((height - side) / 2);
  const result = new Uint8ClampedArray(side * side * bands);
  for (let y = 0; y < side; y++) {
    const from = ((top + y) * width + left) * bands;
    result.set(data.subarray(from, from + side * bands), y * side * bands);
  }
  return { ...picture, width: side, height: side, data: result };
}

function roundedHalfToEven(value) {
  const down = Math.floor(value);
  return value - down === 0.5 ? down + (down % 2) : Math.round(value);
}

/** Bytes [height, width, 3]. Alpha is left out, as Pillow leaves it out. */
function rgb({ mode, bands, data, palette }) {
  const result = new Uint8ClampedArray((data.length / bands) * 3);
  for (let from = 0, at = 0; from < data.length; from += bands, at += 3) {
    for (let channel = 0; channel < 3; channel++) {
      result[at + channel] = mode === "P" ? palette[3 * data[from] + channel] : data[from + (bands > 2 ? channel : 0)];
    }
  }
  return result;
}
