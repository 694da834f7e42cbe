"""What `run.py` measures: the script of each subject, the options of its short version, and what its figures mean."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    title: str
    script: str  # in this folder; writes {"settings", "machine", "left_out", "works"} with --json
    options: str
    about: str
    limits: tuple[str, ...] = ()  # what keeps a figure from being better, each a sentence with its profile


SUBJECTS = {
    "image": Subject(
        "Encoding pictures, float32",
        "inference.py",
        "--kinds image --batches 64,16,1 --rounds 2 --calls 2 "
        "--contenders 'open_clip,transformers,onnxruntime,torch,torch compiled,paddle,nnabla,numpy'",
        "Pixels to features by ViT-B/32 with random weights. onnxruntime runs the file that `clip export` writes. "
        "*torch compiled* is the model that `compile=True` gives.",
    ),
    "image-bf16": Subject(
        "Encoding pictures, bfloat16",
        "inference.py",
        "--kinds image --batches 64,16,1 --rounds 2 --calls 3 --precision bf16",
        "The same in bfloat16, with the peers' weights cast as their libraries do it.",
        (
            "Without AMX, products of matrices limit this: on one core they take 77 % of the time of 64 pictures, and "
            "run at 380 to 470 GFLOP/s, here and in the peers. Attention takes 10 %, QuickGELU 5 %, layer "
            "normalisation 3 % and residual sums 1 %. A sum that oneDNN adds to a product takes as long "
            "as one of its own.",
            "Of the 32 ms that one picture takes on one core, products are 22 ms, other functions of PyTorch 6 ms, and "
            "calling them from Python 4 ms.",
            "Int8 in place of bfloat16 was tried in PyTorch, and is not part of the package, since outliers cost it "
            "its exactness or its speed. Weights had a scale for each output channel, activations one for each row, "
            "and the linear layers of compiled blocks were in int8, whose scaling and rounding inductor fuses with "
            "the layers around. On one core of an AMD EPYC with AVX-512 VNNI that gave 1.44 and 1.41 times the speed "
            "of compiled bfloat16 for 16 pictures and one, and 1.34 and 1.26 times for texts; without inductor it was "
            "slower than bfloat16. Cosines to float32 were at least 0.9998 for 68 real pictures and 0.9995 for random "
            "texts, with the embedded model and ViT-B/32 of random weights. With the gains of four channels of each "
            "layer normalisation but the last made 10 and 30 times as large, and two biases of each block raised by 1 "
            "and 3, they fell to 0.9991 and 0.959 for 24 real pictures, and to 0.9989 and 0.987 for texts, where "
            "bfloat16 kept at least 0.9994. Computing rows with outliers in bfloat16 brought 8 of the pictures back "
            "to 0.9998, but was needed for 35 and 41 % of the rows, with which int8 by calculation takes the time of "
            "bfloat16, and left texts at 0.9995 and 0.9976. One scale for all rows of a call gave cosines down to "
            "0.992 without outliers.",
            "On processors without VNNI oneDNN adds up int8 products in 16 bits, which silently cuts sums off: with "
            "`ONEDNN_MAX_CPU_ISA` at AVX512_CORE, the largest values times the largest weights gave less than 1 % of "
            "their product. Weights of 7 bits avoid that, with cosines down to 0.9989 for texts without outliers. "
            "Values with a sign, and results in bfloat16 where the processor has none, are computed by oneDNN's "
            "reference, which takes seconds to a minute for one product.",
            "Higher thresholds from which glibc's allocator asks the system for memory and gives it back, as by "
            "`GLIBC_TUNABLES`, save 1.8 and 2.7 % of the time of 64 pictures in two runs on one core, and in float32 "
            "1.6 and 4.8 %, so they stay as they are.",
        ),
    ),
    "text": Subject(
        "Encoding texts, float32",
        "text.py",
        "--rounds 2 --calls 1",
        "Tokens to features by ViT-B/32: 64 captions of the form *a photo of a cat*, 64 captions as long as those of "
        "COCO, and a zero-shot classifier of OpenAI's 80 templates. open_clip computes the whole context of each text; "
        "transformers computes as much as the longest text of a call needs.",
    ),
    "text-bf16": Subject(
        "Encoding texts, bfloat16",
        "text.py",
        "--rounds 2 --calls 2 --precision bf16",
        "The same in bfloat16.",
        (
            "Without AMX, products of matrices limit this: on one core they take 60 % of the time of 64 captions, at "
            "400 GFLOP/s; attention takes 13 %, QuickGELU 5 %. A prompt of the classifier has 4 tokens that no prompt "
            "before it has. At that rate, their products alone would take a 28th of the time of open_clip, which "
            "multiplies by oneDNN, too. In float32 it multiplies by MKL, which has half of that speed on "
            "AMD's processors.",
        ),
    ),
    "training": Subject(
        "Training step, float32",
        "training.py",
        "--rounds 1 --calls 3 --contenders open_clip,torch,paddle,nnabla",
        "One step of AdamW on a batch of 32 pictures and captions, ViT-B/32. The difference of the first losses shows "
        "that all start from the same model.",
        (
            "With MKL, which open_clip's linear layers use, products of matrices took 78 % of our step in PyTorch. MKL "
            "computes 100 GFLOP/s on one core of an AMD EPYC with AVX-512; oneDNN, which ours use, 203 to 221 forwards "
            "and 158 to 228 backwards. In Paddle the sum over rows that is the gradient of a bias took 65 of the 181 "
            "ms of a layer from 768 to 3072 channels, forwards and backwards; a product gives it in 0.5 ms.",
        ),
    ),
    "training-bf16": Subject(
        "Training step, bfloat16",
        "training.py",
        "--rounds 2 --calls 3 --precision bf16",
        "The same under bfloat16 autocast, which open_clip calls `amp_bf16`.",
        (
            "On one core, MKL and oneDNN alike compute products of matrices in bfloat16 at 300 to 450 GFLOP/s, here "
            "and in open_clip. PyTorch's backward pass of attention takes 25 ms in bfloat16 and 8 ms in float32, which "
            "ours uses, for 16 pictures and one block.",
        ),
    ),
    "tokenizer": Subject(
        "Tokenizing",
        "tokenizer.py",
        "--rounds 2 --texts 3000",
        "Texts to rows of 77 tokens, one thread. The difference is the share of texts that get other tokens than "
        "OpenAI's tokenizer gives.",
    ),
    "preprocessing": Subject(
        "Preprocessing",
        "preprocessing.py",
        "--rounds 3 --calls 20",
        "JPEG files to pixels, one core, beside OpenAI's transform of torchvision's parts. The difference is the "
        "largest of any pixel.",
        (
            "Pillow's decoder and its pass along the width limit this. Of the 3.1 ms of a picture of 640 x 480, "
            "decoding takes 29 %, the pass along the width 52 %, the pass along the height, of the kept columns alone, "
            "12 %, the conversion to numbers 4 %, and opening the file 3 %. Of 2000 x 1500, the first two take 96 %. "
            "Neither can do less with the same pixels: the decoder's smaller scales give others, and so does Pillow's "
            "box, whose corners are rounded to float32. A table in place of the three operations of the conversion is "
            "slower, and so is a pass for each channel alone, by 12 %. The pass along the height of a transposed "
            "picture gives the same pixels; it saves 3 to 9 % of resizing 640 x 480, but takes 46 % more for "
            "4000 x 3000.",
        ),
    ),
    "conversion": Subject(
        "Converting a file",
        "conversion.py",
        "--rounds 4 --calls 1",
        "`clip convert` of a .pt of 605 MB as a whole process: reading, hashing, writing, reading back, comparing and "
        "flushing. The peer is `torch.load` and `torch.save` of the same file, which does none of the checks.",
        (
            "The parts, measured one by one, add up to about 2.3 s of one core for .h5, which two cores share: start "
            "and imports 0.6 s (25 %), reading into large pages 0.15 s (6 %), its CRC-32 0.1 s (4 %), three SHA-256, "
            "of the source, of the tensors and of the target, 0.95 s (41 %), writing 0.4 s (17 %), comparing 0.1 s "
            "(4 %). "
            "For .pdparams it is 0.4 s more, since Paddle's matrices are transposed.",
        ),
    ),
    "startup": Subject(
        "Starting",
        "startup.py",
        "--rounds 2 --calls 2",
        "Whole processes. The peer is a script that imports the package, loads ViT-B/32 from .safetensors, and encodes "
        "one picture and two labels.",
    ),
    "serving": Subject(
        "Serving",
        "serving.py",
        "--model ViT-B/32 --rounds 2 --seconds 2",
        "Answers of `clip serve` to 1, 8 and 64 clients on the same machine, each of which sends one text or JPEG file "
        "after the other. The peer calls the model directly, with one input after the other or with 32 at once.",
    ),
    "search": Subject(
        "Searching",
        "search.py",
        "--rounds 1 --calls 2 --contenders 'numpy,clip on disk,clip in memory,faiss'",
        "The 20 nearest of 1,000,000 vectors of 512 numbers, exactly, for one query and for eight at once. An index "
        "stores them in float16; the peers hold them in memory in float32. The disk's files are in the system's cache. "
        "The difference is the largest of any cosine.",
    ),
    "memory": Subject(
        "Memory of loading and converting",
        "memory.py",
        "--model ViT-B/32 --contenders "
        "'torch .safetensors,paddle .safetensors,nnabla .safetensors,numpy .safetensors,.pt to .h5,.pt to .pdparams'",
        "By how much resident memory grows at most, and how much of it stays, relative to the weights in float32. What "
        "the imports take does not count.",
    ),
    "growth": Subject(
        "Growth",
        "growth.py",
        "--rounds 1 --calls 1",
        "The slope of the logarithm of the time over that of the size; 1 is linear.",
    ),
}
