"""The layout of the page, in Gradio: what is asked goes to `answers`, and a fault is one sentence on the page.

Gradio hands over what was asked as it came (``preprocess=False``), so that `answers` alone opens pictures.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import backends
from clip import samples
from clip.web.answers import MOST_FOUND, MOST_PICTURES, PRESETS, Answers, examples
from clip_core.errors import ClipError, visible

# Before Gradio is imported, which else asks other servers, and draws up statistics with pandas after each question.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(1 << 62))

import gradio as gr

KEPT_SECONDS = 600  # that a picture stays on the disk after it was sent
SWEEP_SECONDS = 60  # between two looks for pictures to delete
MOST_WAITING = 1000  # questions; Gradio keeps messages for twice as many sessions, and would lose others
AT_ONCE = 8  # questions, of which most wait for an address; one at a time is computed
SHOWN_CATEGORIES = 10
WIDE = 240  # pixels of a field, of which a phone shows one in a row
NARROW = 80  # pixels to which a button may shrink, so that those of a row stay in it on a phone
# Found pictures whole and all, each above what is said of it; of tables as much as fits.
STYLE = """
.found .gallery-container .grid-wrap { max-height: none; }
.found .gallery-item .thumbnail-item { display: flex; flex-direction: column; aspect-ratio: auto; }
.found .gallery-item .thumbnail-item img { height: auto; aspect-ratio: 1; }
.found .gallery-item .caption-label {
  position: static; max-width: none; border: none; white-space: normal; overflow-wrap: anywhere;
}
@media (max-width: 640px) {
  .found .gallery-container .grid-container { --grid-cols: 2 !important; }
  .table-wrap .cell-wrap, .table-wrap .cell-wrap span { padding: 4px 2px; font-size: 12px; }
}
"""
# Gradio gives its buttons of examples no name that a screen reader could read.
_NAME_EXAMPLES = """() => {
  const names = %s;
  const name = () => document.querySelectorAll(".gallery").forEach((gallery) =>
    gallery.querySelectorAll("button:has(img)").forEach((button, place) => { button.ariaLabel = names[place]; }));
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}"""


def page(answers: Answers) -> Any:
    """The page that asks ``answers``."""
    with gr.Blocks(title="TriCLIP", delete_cache=(SWEEP_SECONDS, KEPT_SECONDS), analytics_enabled=False) as blocks:
        gr.Markdown("# TriCLIP\nOne CLIP for NNabla, Paddle and PyTorch: pictures and texts in one space.")
        with gr.Row():
            model = gr.Dropdown(answers.models, value=answers.models[0], label="Model")
            backend = gr.Dropdown(backends.available(), value=answers.backend, label="Framework")
        with gr.Tab("Classify"):
            with gr.Row():
                with gr.Column():
                    picture, address = _picture("Picture")
                with gr.Column():
                    categories, template = _categories(answers)
                    button = gr.Button("Classify", variant="primary")
                    bars = gr.Label(num_top_classes=SHOWN_CATEGORIES, label="Probabilities")
                    table = _table("Numbers", "category", "probability", "logit")
            question = [picture, address, categories, template]
            _on(button, _classify(answers), [*question, model, backend], [bars, table], "classify")
        with gr.Tab("Agreement"):
            gr.Markdown("The picture and the categories of the first tab, in every framework that is installed here.")
            button = gr.Button("Compare the frameworks", variant="primary")
            verdict = gr.Markdown()
            table = _table("Frameworks", "framework", "difference of logits", "probability", "nearest category")
            _on(button, _agreement(answers), [*question, model], [verdict, table], "agreement")
        with gr.Tab("Similarity"):
            pictures = gr.File(
                file_count="multiple", file_types=["image"], label=f"Pictures, at most {MOST_PICTURES}", type="filepath"
            )
            texts = gr.Textbox(
                "a red circle\na blue circle\na turquoise star", lines=4, label="Texts, one in each line"
            )
            drawn = [str(path) for path in examples()[:4]]
            gr.Examples([[drawn]], [pictures], label="Examples", example_labels=[f"{len(drawn)} drawn pictures"])
            button = gr.Button("Compare pictures and texts", variant="primary")
            drawing = gr.Image(
                label="Cosines", interactive=False, format="png", type="pil", buttons=["download", "fullscreen"]
            )
            _on(button, _similarity(answers), [pictures, texts, model, backend], [drawing], "similarity")
        if answers.index is not None:
            with gr.Tab("Search"):
                _search_tab(answers)
        blocks.load(None, js=_NAME_EXAMPLES % json.dumps(list(samples.pictures())))
    blocks.state_session_capacity = MOST_WAITING  # of the last sessions, 85 KB of each; by default of 10,000
    blocks.queue(
        max_size=MOST_WAITING, default_concurrency_limit=AT_ONCE, api_open=False
    )  # what computes is reached by the queue alone
    return blocks


def _categories(answers: Answers) -> tuple[Any, Any]:
    """What categories and their template are given by, and presets of both."""
    categories = gr.Textbox("\n".join(PRESETS[0].categories), lines=7, label="Categories, one in each line")
    template = gr.Textbox(answers.template, label="Template", info="{} is the place of the category.", max_lines=1)
    with gr.Row():
        for preset in PRESETS:
            gr.Button(preset.name, size="sm", min_width=NARROW).click(
                lambda preset=preset: ("\n".join(preset.categories), preset.template),
                None,
                [categories, template],
                queue=False,
                api_visibility="private",
            )
    return categories, template


def _search_tab(answers: Answers) -> None:
    index = answers.index
    assert index is not None
    kind = "texts" if index.store.texts else "pictures"
    gr.Markdown(f"An index of {len(index):,} {kind}, searched with the model that made it.")
    with gr.Row():
        text = gr.Textbox(label="Text", placeholder="a red circle", max_lines=1, min_width=WIDE)
        minus = gr.Textbox(lines=2, label="But not, one text in each line", min_width=WIDE)
        count = gr.Slider(1, MOST_FOUND, value=12, step=1, label="Results")
    with gr.Accordion("A picture, alone or with the text", open=False):
        picture, address = _picture("Picture")
    button = gr.Button("Search", variant="primary")
    outputs: list[Any] = (
        []
        if index.store.texts
        else [
            gr.Gallery(
                label="Pictures",
                columns=4,
                height="auto",
                object_fit="contain",
                buttons=["download", "fullscreen"],
                elem_classes="found",
            )
        ]
    )
    outputs.append(_table("Results", "score", kind[:-1]))
    inputs = [text, picture, address, minus, count]
    _on(button, _search(answers), inputs, outputs, "search")
    _on(text, _search(answers), inputs, outputs, None)


def _picture(label: str) -> tuple[Any, Any]:
    """What a picture and its address are given by, and examples of pictures."""
    picture = gr.Image(
        sources=["upload", "webcam", "clipboard"], type="filepath", image_mode=None, label=label, height=280
    )
    address = gr.Textbox("", label="Or its address", placeholder="https://", max_lines=1)
    gr.Examples([[str(path)] for path in examples()], [picture], label="Drawn pictures")
    return picture, address


def _table(label: str, *headers: str) -> Any:
    return gr.Dataframe(headers=list(headers), interactive=False, label=label)


def _on(source: Any, function: Callable[..., Any], inputs: list[Any], outputs: list[Any], name: str | None) -> None:
    """Let a button, or Enter in a text, ask; without a name, clients of Gradio's API cannot."""
    event = source.click if isinstance(source, gr.Button) else source.submit
    event(
        function,
        inputs,
        outputs,
        preprocess=False,
        concurrency_limit=AT_ONCE,
        concurrency_id="model",
        api_name=name,
        api_visibility="public" if name else "private",
    )


def _classify(answers: Answers) -> Callable[..., Any]:
    @_sentences
    def classify(picture: object, *texts: object) -> tuple[dict[str, float], list[list[str]]]:
        rows = answers.classify(_path(picture), *_texts(texts))
        shown = {row.category: row.probability for row in rows}
        return shown, [[row.category, f"{row.probability:.6f}", f"{row.logit:.4f}"] for row in rows]

    return classify


def _agreement(answers: Answers) -> Callable[..., Any]:
    @_sentences
    def agreement(picture: object, *texts: object) -> tuple[str, list[list[str]]]:
        rows, bound = answers.agreement(_path(picture), *_texts(texts))
        agree = all(row.difference <= 2 * bound for row in rows)  # each may be that far from the exact value
        verdict = f"**{'They agree' if agree else 'They differ'}**: each may be {bound:.1e} from the exact logits."
        return verdict, [[row.backend, f"{row.difference:.1e}", f"{row.probability:.6f}", row.nearest] for row in rows]

    return agreement


def _similarity(answers: Answers) -> Callable[..., Any]:
    @_sentences
    def similarity(pictures: object, *texts: object) -> Any:
        paths = [_path(each) for each in pictures] if isinstance(pictures, list) else []
        return answers.similarity([path for path in paths if path is not None], *_texts(texts))

    return similarity


def _search(answers: Answers) -> Callable[..., Any]:
    @_sentences
    def search(text: object, picture: object, address: object, minus: object, count: object) -> Any:
        wanted, where, far = _texts([text, address, minus])
        found = answers.search(wanted, _path(picture), where, far, count if isinstance(count, int) else 0)
        table = [[f"{each.score:.4f}", each.name] for each in found]
        if answers.index is not None and answers.index.store.texts:
            return table
        shown = [(each.picture, f"{each.score:.4f} {each.name}") for each in found if each.picture is not None]
        return shown, table

    return search


def _path(picture: object) -> str | None:
    """Where an upload is, in the form in which Gradio has it; `Guard` lets no other path through."""
    if picture is None:
        return None
    path = picture.get("path") if isinstance(picture, dict) else None
    if not isinstance(path, str):
        raise ClipError("The picture is none that was uploaded; upload it.")
    return path


def _texts(given: Any) -> list[str]:
    if not all(isinstance(each, str) for each in given):
        raise ClipError("A field for a text was given something else; write a text.")
    return list(given)


def _sentences(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with a fault of the user's as a sentence on the page, which would take it for HTML."""

    @wraps(function)
    def answer(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ClipError as error:
            sentence = html.escape(visible(str(error)), quote=False)
            raise gr.Error(sentence, duration=10, print_exception=False) from error

    return answer
