/** Every fault that a user can cause, as one sentence: what was found, what was expected, what to do. */
export class Fault extends Error {}

/** What the page shows of anything that was thrown: a fault's sentence, or a sentence around a program's message. */
export function sentenceOf(error) {
  if (error instanceof Fault) return error.message;
  const message = String(error?.message ?? error)
    .replaceAll(/\s+/g, " ")
    .slice(0, 300);
  return `Something went wrong: ${message}; reload the page, and look at the browser's console.`;
}

/** A string as it is quoted in a sentence, cut where it is long. */
export function quoted(text) {
  const characters = [...text];
  return JSON.stringify(characters.length > 80 ? `${characters.slice(0, 80).join("")}…` : text);
}
