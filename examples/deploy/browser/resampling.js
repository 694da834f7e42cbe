/**
 * Pillow's resizing to the last bit: `resize` of clip_core/preprocess.py, one axis after the other.
 *
 * A picture is {mode, width, height, bands, data}: Pillow's mode, and bytes [height, width, bands].
 */

const PRECISION_BITS = 22; // of Pillow's fixed-point weights: 32 bits less 8 of a pixel and 2 for sums
const PREMULTIPLIED = { LA: "La", RGBA: "RGBa" }; // modes whose colours mix in proportion to their alpha
const NEAREST_MODES = ["1", "P"]; // whose values cannot be mixed

/** Pillow's filters: how far each reaches, and its weight at a distance, in pixels. */
export const FILTERS = {
  bicubic: { support: 2, weight: keys },
  bilinear: { support: 1, weight: (distance) => Math.max(0, 1 - Math.abs(distance)) },
};

/** The picture in another size; `interpolation` is a name of `FILTERS`. */
export function resize(picture, width, height, interpolation) {
  if (picture.width === width && picture.height === height) return picture;
  if (NEAREST_MODES.includes(picture.mode)) return transposed(nearest(transposed(nearest(picture, width)), height));
  if (picture.mode in PREMULTIPLIED) {
    return divided(resize(multiplied(picture), width, height, interpolation), picture.mode);
  }
  return vertical(horizontal(picture, width, FILTERS[interpolation]), height, FILTERS[interpolation]);
}

/** Keys' cubic convolution with a = -1/2, in Pillow's order of operations, which decides the last bit. */
function keys(distance) {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** For each of `after` places: the first of the `before` places that it is mixed of, how many, and their weights. */
function weights(before, after, { support, weight }) {
  const scale = before / after;
  const widening = Math.max(scale, 1); // of the filter, so that it covers all pixels that become one
  const reach = support * widening;
  const most = Math.ceil(reach) * 2 + 1;
  const starts = new Int32Array(after);
  const counts = new Int32Array(after);
  const fixed = new Int32Array(after * most);
  const inverse = 1 / widening;
  for (let place = 0; place < after; place++) {
    const centre = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach + 0.5));
    const count = Math.min(before, Math.trunc(centre + reach + 0.5)) - start;
    const exact = Array.from({ length: count }, (_, x) => weight((x + start - centre + 0.5) * inverse));
    const sum = exact.reduce((total, value) => total + value, 0);
    exact.forEach((value, x) => {
      const scaled = (sum === 0 ? value : value / sum) * (1 << PRECISION_BITS);
      fixed[place * most + x] = Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    starts[place] = start;
    counts[place] = count;
  }
  return { starts, counts, fixed, most };
}

function horizontal(picture, width, filter) {
  if (picture.width === width) return picture;
  const { height, bands, data } = picture;
  const { starts, counts, fixed, most } = weights(picture.width, width, filter);
  const result = new Uint8ClampedArray(width * height * bands);
  for (let y = 0, at = 0; y < height; y++) {
    const row = y * picture.width * bands;
    for (let x = 0; x < width; x++) {
      for (let band = 0; band < bands; band++, at++) {
        let sum = 1 << (PRECISION_BITS - 1);
        let from = row + starts[x] * bands + band;
        for (let k = x * most, end = k + counts[x]; k < end; k++, from += bands)
          sum = (sum + data[from] * fixed[k]) | 0;
        result[at] = sum >> PRECISION_BITS;
      }
    }
  }
  return { ...picture, width, data: result };
}

function vertical(picture, height, filter) {
  if (picture.height === height) return picture;
  const { starts, counts, fixed, most } = weights(picture.height, height, filter);
  const row = picture.width * picture.bands;
  const result = new Uint8ClampedArray(row * height);
  const sums = new Int32Array(row);
  for (let y = 0; y < height; y++) {
    sums.fill(1 << (PRECISION_BITS - 1));
    for (let k = 0; k < counts[y]; k++) {
      const weight = fixed[y * most + k];
      const from = (starts[y] + k) * row;
      for (let x = 0; x < row; x++) sums[x] += picture.data[from + x] * weight;
    }
    for (let x = 0; x < row; x++) result[y * row + x] = sums[x] >> PRECISION_BITS;
  }
  return { ...picture, height, data: result };
}

/** The nearest pixels along the width, of one band; sums of the step are rounded as Pillow's are. */
function nearest(picture, width) {
  const result = new Uint8ClampedArray(width * picture.height);
  const step = picture.width / width;
  for (let x = 0, at = step * 0.5; x < width; x++, at += step) {
    const from = Math.trunc(at);
    for (let y = 0; y < picture.height; y++) result[y * width + x] = picture.data[y * picture.width + from];
  }
  return { ...picture, width, data: result };
}

/** Width and height exchanged, of one band. */
function transposed(picture) {
  const { width, height, data } = picture;
  const result = new Uint8ClampedArray(data.length);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) result[x * height + y] = data[y * width + x];
  return { ...picture, width: height, height: width, data: result };
}

/** Colours times alpha, which is the last band. */
function multiplied(picture) {
  const { bands } = picture;
  const data = new Uint8ClampedArray(picture.data);
  for (let at = 0; at < data.length; at += bands) {
    const alpha = data[at + bands - 1];
    for (let band = 0; band < bands - 1; band++) {
      const product = data[at + band] * alpha + 128;
      data[at + band] = ((product >> 8) + product) >> 8; // divided by 255, rounded
    }
  }
  return { ...picture, mode: PREMULTIPLIED[picture.mode], data };
}

/** Colours divided by alpha, for the mode that has been `multiplied`. */
function divided(picture, mode) {
  const { bands, data } = picture;
  for (let at = 0; at < data.length; at += bands) {
    const alpha = data[at + bands - 1];
    if (alpha === 0 || alpha === 255) continue;
    for (let band = 0; band < bands - 1; band++) data[at + band] = Math.trunc((255 * data[at + band]) / alpha);
  }
  return { ...picture, mode };
}
