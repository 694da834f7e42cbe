"""The layout of the page, in Gradio: what is asked goes to `answers`, and a fault is one sentence on the page."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import wraps
from typing import Any

import backends
from clip.web.answers import MOST_PICTURES, PRESETS, Answers, examples
from clip_core.errors import ClipError, visible

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before Gradio is imported, which asks other servers then

import gradio as gr

UPLOAD_BYTES = 20 << 20  # of one file
KEPT_SECONDS = 600  # that a picture stays on the disk after it was sent
SHOWN_CATEGORIES = 10
FONT = ("system-ui", "sans-serif")  # the reader's own, so that no browser asks another server
MONOSPACE = ("ui-monospace", "monospace")


def serve(blocks: Any, host: str, port: int) -> None:
    """Answer in other threads, until ``blocks.close()``.

    Args:
        port: 0 takes any that is free; ``blocks.server_port`` says which.

    Raises:
        OSError: nobody can listen there.
    """
    blocks.queue(max_size=None, default_concurrency_limit=1, api_open=True)
    blocks.launch(
        server_name=host,
        server_port=port or _free_port(host),
        prevent_thread_lock=True,
        theme=gr.themes.Default(primary_hue="blue", font=FONT, font_mono=MONOSPACE),
        max_file_size=UPLOAD_BYTES,
        footer_links=[],
        share=False,
        show_error=False,
        ssr_mode=False,
        quiet=True,
    )


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.bind((host, 0))
        return found.getsockname()[1]


def page(answers: Answers) -> Any:
    """The page that asks ``answers``; one question is computed at a time, and the others wait for their turn."""
    with gr.Blocks(title="TriCLIP", delete_cache=(60, KEPT_SECONDS), analytics_enabled=False) as blocks:
        gr.Markdown("# TriCLIP\nOne CLIP for NNabla, Paddle and PyTorch: pictures and texts in one space.")
        with gr.Row():
            model = gr.Dropdown(answers.models, value=answers.models[0], label="Model")
            backend = gr.Dropdown(backends.available(), value=answers.backend, label="Framework")
        with gr.Tab("Classify"):
            question = _question(answers)
            button = gr.Button("Classify", variant="primary")
            bars = gr.Label(num_top_classes=SHOWN_CATEGORIES, label="Probabilities")
            table = gr.Dataframe(headers=["category", "probability", "logit"], interactive=False, label="Numbers")
            _on(button, _classify(answers), [*question, model, backend], [bars, table], "classify")
        with gr.Tab("Agreement"):
            gr.Markdown("The picture and the categories of the first tab, in every framework that is installed here.")
            button = gr.Button("Compare the frameworks", variant="primary")
            verdict = gr.Markdown()
            table = gr.Dataframe(
                headers=["framework", "nearest category", "probability", "largest difference of logits"],
                interactive=False,
                label="Frameworks",
            )
            _on(button, _agreement(answers), [*question, model], [verdict, table], "agreement")
        with gr.Tab("Similarity"):
            pictures = gr.File(
                file_count="multiple", file_types=["image"], label=f"Pictures, at most {MOST_PICTURES}", type="filepath"
            )
            texts = gr.Textbox(
                "a red circle\na blue circle\na turquoise star", lines=4, label="Texts, one in each line"
            )
            gr.Examples([[[str(path) for path in examples()[:4]]]], [pictures], label="Drawn pictures")
            button = gr.Button("Compare pictures and texts", variant="primary")
            drawing = gr.Image(label="Cosines", interactive=False, format="png", type="pil")
            _on(button, _sentences(answers.similarity), [pictures, texts, model, backend], [drawing], "similarity")
    return blocks


def _question(answers: Answers) -> list[Any]:
    """What a picture, its address, categories and their template are given by, beside presets and examples."""
    first = PRESETS[0]
    with gr.Row():
        with gr.Column():
            picture = gr.Image(
                sources=["upload", "webcam", "clipboard"], type="filepath", image_mode=None, label="Picture", height=280
            )
            address = gr.Textbox(label="or its address", placeholder="https://", max_lines=1)
            gr.Examples([[str(path)] for path in examples()], [picture], label="Drawn pictures")
        with gr.Column():
            categories = gr.Textbox("\n".join(first.categories), lines=8, label="Categories, one in each line")
            template = gr.Textbox(
                answers.template, label="Template", info="{} is the place of the category.", max_lines=1
            )
            with gr.Row():
                for preset in PRESETS:
                    gr.Button(preset.name, size="sm").click(
                        lambda preset=preset: ("\n".join(preset.categories), preset.template),
                        None,
                        [categories, template],
                        queue=False,
                        api_visibility="private",
                    )
    return [picture, address, categories, template]


def _on(button: Any, function: Callable[..., Any], inputs: list[Any], outputs: list[Any], name: str) -> None:
    button.click(function, inputs, outputs, api_name=name, concurrency_limit=1, concurrency_id="model")


def _classify(answers: Answers) -> Callable[..., Any]:
    @_sentences
    def classify(*question: Any) -> tuple[dict[str, float], list[list[str]]]:
        rows = answers.classify(*question)
        shown = {row.category: row.probability for row in rows}
        return shown, [[row.category, f"{row.probability:.6f}", f"{row.logit:.4f}"] for row in rows]

    return classify


def _agreement(answers: Answers) -> Callable[..., Any]:
    @_sentences
    def agreement(*question: Any) -> tuple[str, list[list[str]]]:
        rows, bound = answers.agreement(*question)
        agree = all(row.difference <= 2 * bound for row in rows)  # each may be that far from the exact value
        verdict = f"**{'They agree' if agree else 'They differ'}**: each may be {bound:.1e} from the exact logits."
        return verdict, [[row.backend, row.nearest, f"{row.probability:.6f}", f"{row.difference:.1e}"] for row in rows]

    return agreement


def _sentences(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with a fault of the user's as a sentence on the page."""

    @wraps(function)
    def answer(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ClipError as error:
            raise gr.Error(visible(str(error)), duration=None, print_exception=False) from error

    return answer
