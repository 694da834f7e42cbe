/** The page: it takes pictures and labels from whoever looks at it, and shows what the classifier makes of them. */

import { Classifier } from "./classifier.js";
import { Fault, sentenceOf } from "./faults.js";
import { MAX_FILE_BYTES } from "./picture.js";

const PATIENCE = 250; // milliseconds after the last key
const PLAIN = "{}";
const PHOTO = "a photo of a {}."; // OpenAI's models do best with a sentence
const FIRST_LABELS = {
  [PLAIN]: ["a red circle", "a blue circle", "a green triangle", "a red star"],
  [PHOTO]: ["cat", "dog", "bicycle", "mountain"],
};

const element = (id) => document.getElementById(id);

let classifier = null;
let early = null; // a picture file that came before the model
let picture = null; // what `Classifier.look` gave, and the name of its file
let result = null; // what is shown
let newest = 0; // number of the last question, whose answer alone is shown
let timer = 0;

await start();

async function start() {
  const folder = new URL(new URLSearchParams(location.search).get("model") ?? "model", document.baseURI);
  folder.pathname = `${folder.pathname.replace(/\/+$/, "")}/`;
  listen();
  try {
    if (folder.origin !== location.origin)
      throw new Fault("The model must be on the server of this page; give ?model=FOLDER.");
    classifier = await Classifier.load(folder, (done, all) => (element("progress").value = done / all));
  } catch (error) {
    element("model").textContent = "No model is loaded.";
    element("progress").hidden = true;
    show(error);
    return;
  }
  const { model, precision, preprocessing, tokenizer, logit_bias: bias } = classifier.description;
  const about = [
    `Model ${model}, ${precision}`,
    `pictures of ${preprocessing.resolution} × ${preprocessing.resolution} pixels`,
    `texts of up to ${tokenizer.context_length} tokens`,
  ];
  if (bias !== undefined) about.push("each label is judged by itself, so probabilities need not add up to 1");
  element("model").textContent = `${about.join("; ")}.`;
  element("progress").hidden = true;
  const template = model === "shapes" ? PLAIN : PHOTO;
  element("template").value ||= template;
  element("labels").value ||= FIRST_LABELS[template].join("\n");
  document.body.dataset.ready = "";
  early ??= element("file").files[0];
  if (early) await take(early);
}

function listen() {
  const drop = element("drop");
  element("file").addEventListener("change", ({ target }) => target.files.length > 0 && take(target.files[0]));
  for (const id of ["labels", "template", "truncate"]) {
    element(id).addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(compare, PATIENCE);
    });
  }
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    takeFrom(event.dataTransfer, "dropped");
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length > 0) {
      event.preventDefault();
      takeFrom(event.clipboardData, "pasted");
    }
  });
  element("save").addEventListener("click", save);
}

function takeFrom(data, how) {
  if (data.files.length > 0) take(data.files[0]);
  else show(new Fault(`What was ${how} is no file; save the picture, and choose its file.`));
}

/** Take a picture file, show it, and compare it with the labels. */
async function take(file) {
  if (classifier === null) {
    early = file;
    return;
  }
  const question = ask();
  try {
    if (file.size > MAX_FILE_BYTES) {
      throw new Fault(
        `${file.name} has ${file.size} bytes, and the limit is ${MAX_FILE_BYTES}; save it in a smaller size.`,
      );
    }
    const seen = await classifier.look(new Uint8Array(await file.arrayBuffer()));
    if (question !== newest) return;
    picture = { ...seen, name: file.name };
    showPicture(file);
    await compare();
  } catch (error) {
    if (question === newest) forget(error);
  }
}

/** A new question, which makes the ones before it void. */
function ask() {
  document.body.classList.add("busy");
  return ++newest;
}

async function compare() {
  if (classifier === null || picture === null) return;
  const question = ask();
  const labels = element("labels")
    .value.split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
  const template = element("template").value;
  const truncate = element("truncate").checked;
  try {
    const scores = await classifier.compare(picture, labels, template, truncate);
    if (question !== newest) return;
    result = { template, truncate, scores };
    showScores(scores);
    show(null);
  } catch (error) {
    if (question === newest) show(error);
  }
}

function forget(error) {
  picture = null;
  for (const id of ["preview", "seen"]) element(id).hidden = true;
  element("invitation").hidden = false;
  show(error);
}

/** Show a fault in place of scores, or none. */
function show(error) {
  document.body.classList.remove("busy");
  element("fault").hidden = error === null;
  element("fault").textContent = error === null ? "" : sentenceOf(error);
  element("results").hidden = error !== null;
  if (error !== null) result = null;
  if (error !== null && !(error instanceof Fault)) console.error(error);
}

function showPicture(file) {
  const preview = element("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `The chosen picture, ${file.name}`;
  preview.hidden = false;
  element("invitation").hidden = true;
  const { resolution, resize } = classifier.description.preprocessing;
  const canvas = element("small");
  canvas.width = canvas.height = resolution;
  const rgba = new Uint8ClampedArray(resolution * resolution * 4).fill(255);
  for (let from = 0, at = 0; from < picture.small.length; from += 3, at += 4) {
    rgba.set(picture.small.subarray(from, from + 3), at);
  }
  canvas.getContext("2d").putImageData(new ImageData(rgba, resolution, resolution), 0, 0);
  element("seen-caption").textContent =
    `What the model sees of ${picture.width} × ${picture.height} pixels: ` +
    (resize === "squash"
      ? `all of it, stretched to ${resolution} × ${resolution}.`
      : `the middle, at ${resolution} × ${resolution}.`);
  element("seen").hidden = false;
  element("notes").replaceChildren(...picture.notes.map((note) => made("li", note)));
}

function showScores(scores) {
  const ranked = scores.toSorted((left, right) => right.logit - left.logit);
  const rows = ranked.map(({ label, logit, probability }) => {
    const head = made("th", label);
    head.scope = "row";
    head.style.setProperty("--share", `${100 * probability}%`);
    const numbers = [`${(100 * probability).toFixed(1)} %`, logit.toFixed(2)].map((text) => made("td", text));
    for (const cell of numbers) cell.className = "number";
    const row = made("tr");
    row.append(head, ...numbers);
    return row;
  });
  element("rows").replaceChildren(...rows);
  const tokens = ranked.flatMap(({ text, tokens }) => {
    const { end } = classifier.tokenizer;
    return [made("dt", text), made("dd", tokens.slice(0, tokens.indexOf(end) + 1).join(" "))];
  });
  element("tokens").replaceChildren(...tokens);
}

function made(name, text = "") {
  const result = document.createElement(name);
  result.textContent = text;
  return result;
}

/** What was computed, for whoever wants to compare it with what clip computes. */
function save() {
  const { name, width, height, pixels, features } = picture;
  const { model, precision } = classifier.description;
  const content = {
    model,
    precision,
    picture: { name, width, height, pixels: Array.from(pixels), features: Array.from(features) },
    ...result,
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content)], { type: "application/json" }));
  link.download = "scores.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
