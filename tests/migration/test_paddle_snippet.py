"""The notebook of PASSL's document on CLIP, with a random ViT-B/32 and pictures drawn here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clip_core import tolerances
from clip_core.preprocess import preprocess
from clip_core.similarity import normalize
from clip_core.text.bpe import openai
from tests.tolerances import difference

pytestmark = pytest.mark.slow

DESCRIPTIONS = {
    "rocket": "a rocket standing on a launchpad",
    "horse": "a black-and-white silhouette of a horse",
    "coffee": "a cup of coffee on a saucer",
}

MODEL = """
    import numpy as np
    import paddle

    from backends.paddle import CLIPWrapper
    arch = {'name': 'CLIP', 'embed_dim':512,
            'image_resolution': 224, 'vision_layers': 12,
            'vision_width': 768, 'vision_patch_size': 32,
            'context_length': 77, 'vocab_size': 49408,
            'transformer_width': 512, 'transformer_heads': 8,
            'transformer_layers': 12,'qkv_bias': True}
    head = {'name': 'ClipCNHead'}
    model = CLIPWrapper(architectual=arch, head=head)
"""
INPUTS = """
    import os
    from PIL import Image
    from paddle.vision.transforms import Compose, Resize, CenterCrop, ToTensor
    from clip_core.text.bpe import openai

    preprocess = Compose([Resize(224,interpolation='bicubic'),
                         CenterCrop(224),
                         ToTensor(),
                         ])
    image_mean = paddle.to_tensor([0.48145466, 0.4578275, 0.40821073])
    image_std = paddle.to_tensor([0.26862954, 0.26130258, 0.27577711])

    images = []
    texts = []

    for filename in sorted(os.listdir("pictures")):
        name = os.path.splitext(filename)[0]
        if name not in descriptions:
            continue

        im = Image.open(os.path.join("pictures", filename))
        image = preprocess(im.convert("RGB"))
        images.append(image)
        texts.append(descriptions[name])

    image_input = paddle.to_tensor(np.stack(images))
    image_input -= paddle.to_tensor(np.array(image_mean).reshape(-1,1,1))
    image_input /= paddle.to_tensor(np.array(image_std).reshape(-1,1,1))

    tokenizer = openai()
    text_tokens = [tokenizer.encode("This is " + desc) for desc in texts]

    text_input = paddle.zeros((len(text_tokens), 77), dtype="int64")
    sot_token = tokenizer.start
    eot_token = tokenizer.end

    for i, tokens in enumerate(text_tokens):
        tokens = [sot_token] + tokens + [eot_token]
        text_input[i, :len(tokens)] = paddle.to_tensor(tokens)

    np.save('image_input.npy', image_input.numpy())
    np.save('text_input.npy', text_input.numpy())
"""
FEATURES = """
    with paddle.no_grad():
        import numpy as np
        image_input = paddle.to_tensor(np.load('image_input.npy'))
        text_input = paddle.to_tensor(np.load('text_input.npy'))
        state_dict = paddle.load("pretrain/ViT-B-32.pdparams")['state_dict']
        model.set_state_dict(state_dict)
        image_features = model.model.encode_image(image_input)
        text_features = model.model.encode_text(text_input)

    image_features /= image_features.norm(axis=-1, keepdim=True)
    text_features /= text_features.norm(axis=-1, keepdim=True)
    similarity = paddle.matmul(text_features, image_features.t()).cpu().numpy()
"""


def draw_pictures(folder: Path) -> None:
    folder.mkdir()
    for index, name in enumerate([*sorted(DESCRIPTIONS), "other"]):
        picture = Image.new("RGB", (300 + 90 * index, 401), (30 + 60 * index, 140, 220 - 50 * index))
        draw = ImageDraw.Draw(picture)
        draw.ellipse((40, 60, 200 + 20 * index, 300), (250, 240 - 70 * index, 30))
        draw.polygon([(150, 20), (280, 380), (60 + 30 * index, 350)], (10, 90 * index % 256, 60))
        picture.save(folder / f"{name}.png")


def test_notebook(run_snippet, convert, judge, tmp_path):
    draw_pictures(tmp_path / "pictures")
    (tmp_path / "pretrain").mkdir()
    convert("ViT-B-32.pdparams", layout="passl").rename(tmp_path / "pretrain" / "ViT-B-32.pdparams")
    found = run_snippet(MODEL + f"    descriptions = {DESCRIPTIONS!r}\n" + INPUTS + FEATURES)

    names = sorted(DESCRIPTIONS)
    tokens = openai().tokenize([f"This is {DESCRIPTIONS[name]}" for name in names])
    np.testing.assert_array_equal(found["text_input"].numpy(), tokens)
    pixels = np.stack([preprocess(Image.open(f"pictures/{name}.png"), 224) for name in names])
    np.testing.assert_allclose(found["image_input"].numpy(), pixels, atol=1e-5)

    image, text = normalize(judge.encode_image(found["image_input"].numpy())), normalize(judge.encode_text(tokens))
    assert difference(found["image_features"].numpy(), image) <= tolerances.EMBEDDING
    assert difference(found["text_features"].numpy(), text) <= tolerances.EMBEDDING
    assert difference(100 * found["similarity"], 100 * text @ image.T) <= tolerances.logit_bound(100)
    assert np.ptp(text @ image.T) > 1e-3  # so that the pairs differ for a reason
