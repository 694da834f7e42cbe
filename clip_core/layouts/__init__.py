"""How other projects store a CLIP: one file a project, with its names and its configuration together."""

from clip_core.layouts import (
    huggingface,
    low_resource,
    mixer_clip,
    nnabla,
    open_clip,
    openai,
    paddle,
    passl,
    simple_clip,
    timm,
)
from clip_core.layouts.parts import Layout

LAYOUTS: dict[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT
    for module in (
        openai,  # takes the names that nobody else does
        nnabla,
        paddle,
        passl,
        huggingface,
        open_clip,
        mixer_clip,
        timm,
        simple_clip,
        low_resource,
    )
}
