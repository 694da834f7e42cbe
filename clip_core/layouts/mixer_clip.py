"""Mixer CLIP (github.com/corentin-ryr/CLIP-mixer): the names of its model with Mixers as both towers."""

from __future__ import annotations

from clip_core.layouts.parts import Layout, Renaming, modules

_NAMES = Renaming(
    towers={"visual.mixer.resblocks": "visual.transformer.mixBlocks", "text.mixer.resblocks": "transformer.mixBlocks"},
    block=modules(
        {
            "ln_1": "layerNorm1",
            "token_mlp.c_fc": "token_mix_seq.lin1",
            "token_mlp.c_proj": "token_mix_seq.lin2",
            "ln_2": "layerNorm2",
            "mlp.c_fc": "channel_mix_seq.lin3",
            "mlp.c_proj": "channel_mix_seq.lin4",
        }
    ),
    top=modules({"text.ln_final": "ln_final"})
    | {"text.token_embedding.weight": "token_embedding.weight", "text.text_projection": "text_projection"},
)

LAYOUT = Layout(
    "mixer_clip",
    lambda weights: any(".mixBlocks." in name for name in weights),
    _NAMES,
    _NAMES.inverse(),
    towers=(("mixer", "mixer"),),
)
