"""Find the pictures of a folder that fit a text best, in PyTorch.

python examples/search_pictures_torch.py shapes clip_core/resources/pictures "a striped star"
"""

import argparse
from pathlib import Path

import torch

import clip
from clip_core.image import open_image


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's name or a weights file")
    parser.add_argument("folder", type=Path)
    parser.add_argument("text")
    parser.add_argument("--device")
    arguments = parser.parse_args()

    model, preprocess = clip.load(arguments.model, device=arguments.device, backend="torch")
    paths = sorted(path for path in arguments.folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    text = model.encode_text(clip.tokenize(arguments.text)).squeeze(0)
    ranked = []
    for path in paths:
        image = model.encode_image(preprocess(open_image(path)).unsqueeze(0)).squeeze(0)
        ranked.append((torch.cosine_similarity(image, text, dim=0).item(), path))
    for similarity, path in sorted(ranked, reverse=True):
        print(f"{similarity:.4f} {path.name}")


if __name__ == "__main__":
    main()
