"""The formats that are fuzzed: valid files of each, what is done to them, and the readers that then meet them."""

from __future__ import annotations

import bz2
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pyarrow
import safetensors.numpy
import yaml
from PIL import Image
from pyarrow import parquet

import clip_core
import converters
from clip_core.architecture import Architecture
from clip_core.data.collection.dump import Articles
from clip_core.data.collection.fetching import parse_address
from clip_core.data.collection.lists import read_list
from clip_core.data.collection.words import words_in
from clip_core.errors import ClipError, DownloadError
from clip_core.evaluation.sets.folders import Folders
from clip_core.files import open_regular
from clip_core.image import open_image
from clip_core.layouts import LAYOUTS
from clip_core.naming import parameters
from clip_core.preprocess import preprocess
from clip_core.text import definitions
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import HEADER, learn_byte_level
from clip_core.text.loading import read_tokenizer
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from clip_core.training import checkpoint
from clip_core.training.recipe import Recipe
from clip_core.training.run_log import read_metrics
from converters import tokenizer_files
from tests.data.numbered import open_source
from tests.fuzz import mutations
from tests.fuzz.mutations import Mutation
from tests.hostile.checkpoint_attacks import field, varint

SMALL = Architecture(
    embed_dim=4,
    image=VisionTransformer(resolution=8, patch=4, width=8, layers=1, heads=1),
    text=TextTransformer(context_length=4, vocabulary_size=514, width=8, layers=1, heads=1),
)


@dataclass(frozen=True)
class Format:
    """One kind of file.

    ``seeds`` are valid files, which ``read`` takes; ``file`` is the name that the file under test has in a folder of
    its own, in which ``beside`` has put what belongs to it.
    """

    file: str
    seeds: Callable[[], list[bytes]]
    mutations: tuple[Mutation, ...]
    read: Callable[[Path], object]
    beside: Callable[[Path], None] = lambda folder: None


def _weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {each.name: np.asarray(generator.standard_normal(each.shape), np.float32) for each in parameters(SMALL)}


def _written(suffix: str, layouts: Iterable[str | None]) -> list[bytes]:
    """The small model as this project writes it."""
    return [_in_folder(f"a{suffix}", layout) for layout in layouts]


def _in_folder(name: str, layout: str | None) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        converters.write(converters.ModelFile(_weights(), SMALL, vocabulary=HEADER), path, layout=layout)
        return path.read_bytes()


def _safetensors() -> list[bytes]:
    return [*_written(".safetensors", (None, "huggingface")), safetensors.numpy.save(_weights())]


def _torch_archives() -> list[bytes]:
    return _written(".pt", (None, "huggingface"))


def _pdparams() -> list[bytes]:
    linear = {each.name for each in parameters(SMALL) if each.kind == "linear"}
    arrays = {name: array.T if name in linear else array for name, array in _weights().items()}
    protocols = [pickle.dumps(arrays, protocol=protocol) for protocol in (2, 4)]
    return [*_written(".pdparams", (None, "passl")), *protocols, pickle.dumps({"state_dict": arrays, "epoch": 1}, 2)]


def _hdf5() -> list[bytes]:
    target = io.BytesIO()
    with h5py.File(target, "w", libver="latest") as file:
        for index, (name, array) in enumerate(_weights().items()):
            parameter = file.create_dataset(LAYOUTS["nnabla"].spell(name), data=array)
            parameter.attrs["need_grad"], parameter.attrs["index"] = True, index
    return [*_written(".h5", (None,)), target.getvalue()]


def _protobuf() -> list[bytes]:
    parameters = b""
    for name, array in _weights().items():
        sizes = b"".join(map(varint, array.shape))
        spelled = LAYOUTS["nnabla"].spell(name).encode()
        parameters += field(200, field(1, spelled) + field(20, field(1, sizes)) + field(100, array.tobytes()))
    return [parameters]


def _nnabla_archives() -> list[bytes]:
    found = []
    for name, content in (("parameter.protobuf", _protobuf()[0]), ("parameter.h5", _hdf5()[1])):
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for member, data in (("nnp_version.txt", b"0.1"), ("network.nntxt", b""), (name, content)):
                archive.writestr(zipfile.ZipInfo(member), data)
        found.append(target.getvalue())
    return found


def _index() -> list[bytes]:
    weight_map = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(_weights())}
    return _configuration({"metadata": {}, "weight_map": weight_map})


def _parts(folder: Path) -> None:
    for rest in (0, 1):
        part = {name: array for number, (name, array) in enumerate(_weights().items()) if number % 2 == rest}
        (folder / f"part-{rest}.safetensors").write_bytes(safetensors.numpy.save(part))


def _vocabulary() -> list[bytes]:
    return [tokenizer_files.texts(HEADER, SMALL.text)["vocab.json"].encode()]


def _vocabulary_beside(folder: Path) -> None:
    (folder / "merges.txt").write_text(tokenizer_files.texts(HEADER, SMALL.text)["merges.txt"])


def _read_vocabulary(path: Path) -> None:
    tokenizer_files.read(path.parent)


def _read_weights(path: Path) -> None:
    converters.inspect(path)
    converters.read(path, activation="quick_gelu", heads=(1, 1))


def _configuration(content: dict[str, object]) -> list[bytes]:
    return [json.dumps(content).encode()]


def _open_clip_configuration() -> list[bytes]:
    vision = {"image_size": 8, "layers": 1, "width": 8, "patch_size": 4, "head_width": 8}
    text = {"context_length": 4, "vocab_size": 514, "width": 8, "heads": 1, "layers": 1}
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    model = {"embed_dim": 4, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    return _configuration({"model_cfg": model, "preprocess_cfg": pixels})


def _huggingface_configuration() -> list[bytes]:
    tower = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    tower |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    text = tower | {"vocab_size": 514, "max_position_embeddings": 4, "eos_token_id": 2}
    vision = tower | {"image_size": 8, "patch_size": 4}
    return _configuration(
        {"model_type": "clip", "projection_dim": 4, "text_config": text, "vision_config": vision},
    )


def _weights_beside(layout: str) -> Callable[[Path], None]:
    """Weights that carry no manifest, so that the configuration beside them decides."""

    def write(folder: Path) -> None:
        written = safetensors.numpy.load(_in_folder("a.safetensors", layout))
        (folder / "model.safetensors").write_bytes(safetensors.numpy.save(written))

    return write


def _read_beside(path: Path) -> None:
    converters.read(path.with_name("model.safetensors"))


def _picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    channels = 127.5 + 120 * np.sin(np.stack([rows / 3, columns / 2, rows * columns / 9], axis=-1))
    return Image.fromarray(channels.astype(np.uint8)).convert(mode)


def _pictures(kind: str, *variants: tuple[str, dict[str, object]]) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        found = []
        for mode, options in variants:
            target = io.BytesIO()
            _picture(mode=mode).save(target, kind, **options)
            found.append(target.getvalue())
        return found

    return seeds


def _read_picture(path: Path) -> None:
    preprocess(open_image(path), 16)


def _merges() -> list[bytes]:
    resources = Path(clip_core.__file__).parent / "resources"
    carried = converters.read(resources / "shapes.safetensors").vocabulary
    assert carried is not None
    return [carried.encode(), HEADER.encode() + b"\na b\nab c</w>\n"]


def _read_merges(path: Path) -> None:
    BytePairTokenizer(path.read_bytes().decode("utf-8", "replace")).tokenize(["a large red circle"], 77)


def _tokenizers() -> list[bytes]:
    pairs = definitions.byte_level(learn_byte_level(["a large red circle"] * 2, 10))
    words = definitions.wordpiece("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nred\n##s\n", {})
    return [pairs.encode(), words.encode()]


def _read_tokenizer(path: Path) -> None:
    tokenizer = read_tokenizer(path)
    tokenizer.decode(tokenizer.tokenize(["a large red circle"], 77)[0])


def _recipes() -> list[bytes]:
    recipe = {
        "model": {"architecture": SMALL.to_dict()},
        "training": {"steps": 2, "seed": 1, "precision": "fp32"},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.98]},
        "loss": {"kind": "softmax"},
        "data": {
            "source": {"kind": "table", "file": "table.tsv"},
            "batch_size": 4,
            "augmentation": {"crop": "random"},
        },
        "evaluation": {"every_steps": 1, "retrieval": {"kind": "shapes", "examples": 10}},
    }
    return [yaml.safe_dump(recipe).encode()]


def _shards() -> list[bytes]:
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        target = io.BytesIO()
        picture = io.BytesIO()
        _picture(8, 6).save(picture, "PNG")
        with tarfile.open(fileobj=target, mode="w", format=kind) as archive:
            for name, content in (
                ("a.png", picture.getvalue()),
                ("a.txt", b"a"),
                ("b" * 90 + "/" + "c" * 50 + ".txt", b"b"),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        found.append(target.getvalue())
    return found


def _examples(source: str, **keys: object) -> Callable[[Path], None]:
    """Every example of a source, whose faults are counted and passed over as the loader does."""

    def read(path: Path) -> None:
        settings = {key: str(path.parent / str(value)) for key, value in keys.items()}
        examples = open_source(source, settings, seed=0)
        for index in range(min(len(examples), 10)):
            try:
                example = examples[index]
                assert example.picture.size
                assert example.caption
            except ClipError:
                continue

    return read


def _pictures_beside(folder: Path) -> None:
    for name in ("a.png", "b.png", "apple_pie/a.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        _picture(8, 6).save(folder / name)


def _tables() -> list[bytes]:
    return [b'filepath\ttitle\na.png\tone picture\nb.png\t"a ""quoted"" one"\na.png\tanother\n']


def _dumps() -> list[bytes]:
    page = "<page><title>a</title><ns>0</ns>{}<revision><text>{}</text></revision></page>"
    texts = (
        "[[File:a.jpg|thumb|a &lt;b&gt;bold&lt;/b&gt; [[word|other]]]] {{a|{{b}}}} {| c |}",
        "&lt;ref&gt;x&lt;/ref&gt;",
    )
    pages = [page.format("<redirect/>", "gone"), *(page.format("", text) for text in texts)]
    whole = f"<mediawiki version='0.11'>{''.join(pages)}</mediawiki>"
    parts = ("<mediawiki>", *pages, "</mediawiki>")
    return [bz2.compress(whole.encode()), b"".join(bz2.compress(part.encode()) for part in parts)]


def _read_dump(path: Path) -> None:
    with open_regular(path) as file:
        for text in Articles(path, file):
            list(words_in(text or ""))


def _lists(suffix: str) -> Callable[[], list[bytes]]:
    rows = [{"url": f"http://a.example/{number}.jpg", "caption": f'a "{number}", ü'} for number in range(3)]

    def seeds() -> list[bytes]:
        if suffix == ".parquet":
            found = [io.BytesIO(), io.BytesIO()]
            for stream, compression in zip(found, ("snappy", "zstd")):
                parquet.write_table(pyarrow.Table.from_pylist(rows), stream, compression=compression)
            return [stream.getvalue() for stream in found]
        if suffix == ".jsonl":
            return ["".join(json.dumps(row) + "\n" for row in rows).encode()]
        return [b'url,caption\nhttp://a.example/1.jpg,"a ""b"", c"\nhttp://a.example/2.jpg,d\n']

    return seeds


def _read_list(path: Path) -> None:
    for row in read_list(path):
        with suppress(DownloadError):
            parse_address(row.picture)


def _coco() -> list[bytes]:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    captions = [{"image_id": number, "id": number, "caption": "a picture"} for number in (1, 2, 2)]
    return _configuration({"images": images, "annotations": captions})


def _class_names() -> list[bytes]:
    return [b"a\tfirst\nb\tsecond\n", b"first\nsecond\n"]


def _class_folders(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "pictures" / name).mkdir(parents=True)
        _picture(8, 6).save(folder / "pictures" / name / "0.png")


def _read_classes(path: Path) -> None:
    Folders(folder=str(path.parent / "pictures"), names=str(path), templates=("{}",)).labelled()


def _metrics() -> list[bytes]:
    lines = [{"step": step, "epoch": 1, "loss": 1.5, "learning_rate": 1e-3, "skipped": False} for step in (1, 2, 3)]
    return ["".join(json.dumps(line) + "\n" for line in lines).encode()]


def _arrow() -> list[bytes]:
    import pyarrow

    picture = io.BytesIO()
    _picture(8, 6).save(picture, "PNG")
    images = [{"bytes": picture.getvalue(), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    table = pyarrow.table({"image": images, "caption": ["one", "two"]})
    target = io.BytesIO()
    with pyarrow.ipc.new_stream(target, table.schema) as stream:
        stream.write_table(table)
    return [target.getvalue()]


def _saved_state(folder: Path) -> None:
    _pictures_beside(folder)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))


def _run_json() -> list[bytes]:
    with TemporaryDirectory() as folder:
        _training_checkpoint(Path(folder))
        return [(Path(folder) / _CHECKPOINT / "run.json").read_bytes()]


_CHECKPOINT = "checkpoints/step-00000001"


def _training_checkpoint(folder: Path) -> None:
    state = {"weights/logit_scale": np.zeros((), np.float32), "updates": np.zeros((), np.int64)}
    saved = checkpoint.TrainingCheckpoint(
        1, state, {"position": 1, "skipped": [0], "examples": 8, "fingerprint": "0" * 64}, {"training": {}}, {}
    )
    assert checkpoint.write(folder, saved, keep=1) == folder / _CHECKPOINT


def _read_run(path: Path) -> None:
    """What a training checkpoint says of the run, under its right digest."""
    folder = path.parent / _CHECKPOINT
    digests = json.loads((folder / "manifest.json").read_text())
    digests["sha256"]["run.json"] = sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(digests))
    (folder / "run.json").write_bytes(path.read_bytes())
    checkpoint.read(folder)


_BYTES = (mutations.blind,)
_WEIGHTS_BESIDE = {layout: _weights_beside(layout) for layout in ("openai", "huggingface")}

FORMATS: dict[str, Format] = {
    "safetensors": Format(
        "a.safetensors",
        _safetensors,
        (mutations.blind, mutations.safetensors_header, mutations.manifest),
        _read_weights,
    ),
    "torch": Format(
        "a.pt",
        _torch_archives,
        (
            mutations.blind,
            mutations.zip_members(),
            mutations.zip_members(mutations.pickle_operations),
            mutations.zip_members(mutations.pickle_bombs),
        ),
        _read_weights,
    ),
    "pdparams": Format(
        "a.pdparams",
        _pdparams,
        (mutations.blind, mutations.pickle_operations, mutations.pickle_bombs),
        _read_weights,
    ),
    "hdf5": Format("a.h5", _hdf5, _BYTES, _read_weights),
    "protobuf": Format("a.protobuf", _protobuf, _BYTES, _read_weights),
    "nnp": Format("a.nnp", _nnabla_archives, (mutations.blind, mutations.zip_members()), _read_weights),
    "index": Format(
        "a.safetensors.index.json", _index, (mutations.blind, mutations.json_document), _read_weights, _parts
    ),
    "vocabulary": Format(
        "vocab.json", _vocabulary, (mutations.blind, mutations.json_document), _read_vocabulary, _vocabulary_beside
    ),
    "open_clip_config": Format(
        "open_clip_config.json",
        _open_clip_configuration,
        (mutations.blind, mutations.json_document),
        _read_beside,
        _WEIGHTS_BESIDE["openai"],
    ),
    "huggingface_config": Format(
        "config.json",
        _huggingface_configuration,
        (mutations.blind, mutations.json_document),
        _read_beside,
        _WEIGHTS_BESIDE["huggingface"],
    ),
    "jpeg": Format(
        "a.jpg",
        _pictures("JPEG", ("RGB", {}), ("L", {}), ("RGB", {"progressive": True}), ("CMYK", {})),
        _BYTES,
        _read_picture,
    ),
    "png": Format(
        "a.png",
        _pictures("PNG", ("RGB", {}), ("P", {"transparency": 3}), ("LA", {}), ("1", {})),
        (mutations.blind, mutations.png_chunks),
        _read_picture,
    ),
    "webp": Format("a.webp", _pictures("WEBP", ("RGB", {}), ("RGBA", {"lossless": True})), _BYTES, _read_picture),
    "gif": Format("a.gif", _pictures("GIF", ("P", {}), ("L", {"interlace": True})), _BYTES, _read_picture),
    "tiff": Format(
        "a.tif",
        _pictures("TIFF", ("RGB", {}), ("RGB", {"compression": "tiff_lzw"}), ("L", {"compression": "packbits"})),
        _BYTES,
        _read_picture,
    ),
    "bmp": Format("a.bmp", _pictures("BMP", ("RGB", {}), ("P", {}), ("1", {})), _BYTES, _read_picture),
    "pnm": Format("a.ppm", _pictures("PPM", ("RGB", {}), ("L", {}), ("1", {})), _BYTES, _read_picture),
    "merges": Format("merges.txt", _merges, _BYTES, _read_merges),
    "tokenizer": Format("tokenizer.json", _tokenizers, (mutations.blind, mutations.json_document), _read_tokenizer),
    "recipe": Format("recipe.yaml", _recipes, (mutations.blind, mutations.yaml_document), Recipe.read),
    "shard": Format(
        "a.tar", _shards, (mutations.blind, mutations.tar_headers), _examples("webdataset", shards="a.tar")
    ),
    "table": Format("a.tsv", _tables, _BYTES, _examples("table", file="a.tsv"), _pictures_beside),
    "dump": Format("a.xml.bz2", _dumps, (mutations.blind, mutations.bz2_content), _read_dump),
    "list_csv": Format("a.csv", _lists(".csv"), _BYTES, _read_list),
    "list_jsonl": Format("a.jsonl", _lists(".jsonl"), (mutations.blind, mutations.json_lines), _read_list),
    "list_parquet": Format("a.parquet", _lists(".parquet"), _BYTES, _read_list),
    "coco": Format(
        "a.json",
        _coco,
        (mutations.blind, mutations.json_document),
        _examples("coco", annotations="a.json", images=""),
        _pictures_beside,
    ),
    "arrow": Format("data.arrow", _arrow, _BYTES, _examples("saved", folder=""), _saved_state),
    "class_names": Format("names.txt", _class_names, _BYTES, _read_classes, _class_folders),
    "run": Format("a.json", _run_json, (mutations.blind, mutations.json_document), _read_run, _training_checkpoint),
    "metrics": Format(
        "metrics.jsonl",
        _metrics,
        (mutations.blind, mutations.json_lines),
        lambda path: read_metrics(path.parent),
    ),
}
