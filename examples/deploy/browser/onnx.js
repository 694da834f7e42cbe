/** What an ONNX file says beside its graph. */

import { Fault } from "./faults.js";

const METADATA = 14; // the field `metadata_props` of a ModelProto, messages of a key (1) and a value (2)

/** The metadata properties of an ONNX file whose keys start with `triclip.`, without that, as JavaScript's values. */
export function metadataOf(bytes, name) {
  try {
    const pairs = [];
    for (const [field, content] of fieldsOf(bytes)) {
      if (field !== METADATA) continue;
      const pair = new Map(fieldsOf(content));
      const [key, value] = [1, 2].map((number) => new TextDecoder().decode(pair.get(number)));
      if (key.startsWith("triclip.")) pairs.push([key.slice("triclip.".length), JSON.parse(value)]);
    }
    return Object.fromEntries(pairs);
  } catch {
    throw new Fault(`${name} is damaged: what it says of its model cannot be read; export the model again.`);
  }
}

/** The fields of a protobuf message that have a length: number and content. */
function* fieldsOf(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 1; ; shift *= 128) {
      const byte = bytes[at++];
      if (byte === undefined || shift > 2 ** 49) throw new RangeError("a varint that does not end");
      value += (byte & 0x7f) * shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      if (at + length > bytes.length) throw new RangeError("a field that is cut short");
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new RangeError("a field of an unknown kind");
  }
}
