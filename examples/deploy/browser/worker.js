/** What takes time, away from the page: pictures become pixels, and onnxruntime-web runs the towers. */

import { Fault, sentenceOf } from "./faults.js";
import { decode } from "./picture.js";
import { preprocess } from "./preprocessing.js";

const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

const sessions = {};

const calls = {
  /** Make a session of the bytes of `image.onnx` or `text.onnx`. */
  async load({ part, bytes }) {
    const { InferenceSession } = await runtime();
    try {
      sessions[part] = await InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch (error) {
      throw new Fault(`${part}.onnx cannot be loaded (${oneLine(error)}); export the model again.`);
    }
  },

  /** The bytes of a picture file as pixels; `wanted` is what export.json has under `preprocessing`. */
  async picture({ bytes, wanted }) {
    const picture = await decode(bytes);
    const { width, height, notes } = picture;
    return { ...preprocess(picture, wanted), width, height, notes };
  },

  /** The features of pixels float32 [3, r, r], as float32 [d]. */
  async image({ pixels, side }) {
    const { Tensor } = await runtime();
    const image = new Tensor("float32", pixels, [1, 3, side, side]);
    const { image_features: features } = await run("image", { image });
    return features.data;
  },

  /** The features of rows of tokens of one length, each as float32 [d]. */
  async text({ rows }) {
    const { Tensor } = await runtime();
    const tokens = BigInt64Array.from(rows.flat(), BigInt);
    const { text_features: features } = await run("text", {
      text: new Tensor("int64", tokens, [rows.length, rows[0].length]),
    });
    const width = features.dims[1];
    return rows.map((_, row) => features.data.slice(row * width, (row + 1) * width));
  },
};

async function run(part, inputs) {
  try {
    return await sessions[part].run(inputs);
  } catch (error) {
    throw new Fault(`${part}.onnx cannot be run (${oneLine(error)}); export the model again.`);
  }
}

/** onnxruntime-web, loaded at its first use. */
async function runtime() {
  let library;
  try {
    library = await import(RUNTIME);
  } catch {
    throw new Fault("onnxruntime-web is not there; run npm ci in the folder of this page, and reload it.");
  }
  library.env.wasm.numThreads = 1; // others need headers that a plain server does not send
  library.env.logLevel = "error";
  return library;
}

const oneLine = (error) =>
  String(error?.message ?? error)
    .replaceAll(/\s+/g, " ")
    .slice(0, 200);

self.onmessage = async ({ data: { id, call, given } }) => {
  try {
    self.postMessage({ id, value: await calls[call](given) });
  } catch (error) {
    self.postMessage({ id, sentence: sentenceOf(error) });
  }
};
