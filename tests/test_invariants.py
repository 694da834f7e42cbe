"""The invariants that can be seen in the code itself, numbered as in ARCHITECTURE.md."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import backends
from clip_core.towers import IMAGE_TOWERS, TEXT_TOWERS
from tests.towers import EXAMPLES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backends", "clip", "clip_core", "converters", "exporters")
FRAMEWORKS = (
    "torch",
    "paddle",
    "nnabla",
    "transformers",
    "open_clip",
    "torchvision",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
)
SOURCES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def tree_of(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for the expression of that form; ``?.c`` where what is before the last part is not a name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def lines_with(pattern: str, *folders: str) -> list[str]:
    """``file: line`` for every line of Python in these folders that the pattern is found in."""
    return [
        f"{path.relative_to(ROOT).as_posix()}: {line.strip()}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]


def run_python(code: str, **variables: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_there_are_sources():
    assert len(SOURCES) > 40
    assert {source.split("/")[0] for source in SOURCES} == set(PACKAGES)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_1_core_and_converters_import_no_framework(framework):
    """Every one of their modules, in a fresh interpreter in which the framework does not exist."""
    code = f"""
import importlib, pkgutil, sys
sys.modules[{framework!r}] = None
import clip_core, converters
for package in (clip_core, converters):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
found = set(sys.modules) & set({FRAMEWORKS!r}) - {{{framework!r}}}
assert not found, found
"""
    imported = run_python(code).split()
    assert {"clip_core.towers", "converters.pdparams", "clip_core.training.loop"} <= set(imported)


ALLOWED = {
    # What a file may import of this project and of the frameworks, by the folder it is in; the longest match counts.
    "clip_core/": {"clip_core"},
    "converters/": {"clip_core", "converters"},
    "backends/": {"clip_core", "backends"},
    "backends/numpy/": {"clip_core", "backends.numpy"},
    "backends/torch/": {"clip_core", "backends.torch", "torch"},
    "backends/paddle/": {"clip_core", "backends.paddle", "paddle"},
    "backends/nnabla/": {"clip_core", "backends.nnabla", "nnabla"},
    "backends/onnx/": {"clip_core", "backends.onnx", "exporters.onnx", "onnxruntime"},
    "backends/openvino/": {"clip_core", "backends.openvino", "backends.onnx", "exporters.onnx", "openvino"},
    "exporters/": {"clip_core", "exporters"},
    "exporters/openvino/": {"clip_core", "exporters.openvino", "openvino", "nncf"},
    "exporters/onnx/": {"clip_core", "exporters.onnx", "onnx", "onnxruntime"},
    "clip/": {"clip", "clip_core", "converters", "backends", "exporters"},
}


@pytest.mark.parametrize("source", SOURCES)
def test_2_imports_go_one_way(source):
    allowed = ALLOWED[max((prefix for prefix in ALLOWED if source.startswith(prefix)), key=len)]
    ours = {*PACKAGES, "tests", *FRAMEWORKS}
    wrong = [
        module
        for module in imports_of(tree_of(source))
        if module.split(".")[0] in ours and not any(module == name or module.startswith(f"{name}.") for name in allowed)
    ]
    assert wrong == []


EXECUTING = {
    *("eval", "exec", "compile", "__import__"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "paddle.load", "paddle.jit.load"),
    *("nn.load_parameters", "nnabla.load_parameters", "np.load", "numpy.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "runpy.run_path"),
}
# What runs a file that this very process has written into a temporary folder, to prove it before it is published.
PROVING = {"backends/torch/exported.py": {"torch.jit.load"}}
EXECUTING_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy"}
# What processes that this very process has started tell it, over sockets without a name.
TELLING = {"clip_core/processes.py": {"pickle"}}


@pytest.mark.parametrize("source", SOURCES)
def test_5_reading_executes_nothing(source):
    tree = tree_of(source)
    calls = {dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert calls & EXECUTING == PROVING.get(source, set())
    assert {module.split(".")[0] for module in imports_of(tree)} & EXECUTING_MODULES == TELLING.get(source, set())
    names = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}
    assert not {name for name in names if name.split(".")[-1] in ("Unpickler", "weights_only", "allow_pickle")}
    keywords = {word.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords}
    assert not keywords & {"weights_only", "allow_pickle", "unsafe", "trust_remote_code"}


# Each format is written by one function, which is given a temporary file, or a file in a temporary folder, that
# `clip_core.files` publishes.
FORMATS = ("hdf5", "pdparams", "torch_archive")
WRITERS = {(f"converters/{name}.py", "write") for name in FORMATS} | {("clip_core/safetensors.py", "write")}
WRITERS |= {("converters/hdf5.py", "_reserve"), ("converters/torch_archive.py", "member")}  # their parts
WRITERS |= {("exporters/onnx/quantization.py", "quantize"), ("exporters/openvino/storage.py", "save")}
WRITERS |= {(f"backends/{name}/exported.py", "save") for name in ("torch", "paddle", "nnabla")}
WRITING = {
    "write_text",
    "write_bytes",
    "touch",
    "tofile",
    "savetxt",
    "imsave",
    "to_csv",
    "copyfile",
    "copytree",
    "move",
}
WRITING |= {"np.save", "np.savez", "np.savez_compressed", "torch.save", "paddle.save", "nn.save_parameters"}
WRITING |= {"onnx.save", "onnx.save_model", "quantize_static", "openvino.save_model"}
WRITING |= {"torch.jit.save", "torch.export.save", "paddle.jit.save"}
OURS = {"files.write_text", "files.write_bytes", "write_text", "write_bytes"}


def writes(call: ast.Call) -> bool:
    """Whether this call opens or makes a file for writing."""
    name = dotted(call.func)
    if name in OURS:
        return False
    if name.split(".")[-1] in WRITING or name in WRITING:
        return True
    arguments = [*call.args, *(word.value for word in call.keywords)]
    modes = [value.value for value in arguments if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    if name.split(".")[-1] in ("open", "fdopen", "File", "ZipFile", "TarFile", "NamedTemporaryFile", "mkstemp"):
        return any(set(mode) <= set("rwxab+t") and set(mode) & set("wxa+") for mode in modes) or name.endswith("temp")
    if name.split(".")[-1] in ("save", "savefig"):  # of a picture: to a buffer or an open file, never to a path
        return any(isinstance(value, ast.Constant) for value in call.args)
    return False


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "clip_core/files.py"])
def test_6_one_module_opens_files_for_writing(source):
    tree = tree_of(source)
    found = {
        (source, function.name)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and writes(node)
    }
    assert found <= WRITERS
    at_once = [node for node in tree.body if isinstance(node, ast.Expr | ast.Assign)]
    assert not any(isinstance(node, ast.Call) and writes(node) for top in at_once for node in ast.walk(top))


def test_6_the_writers_of_formats_are_given_a_temporary_file():
    """There is one call, of the chosen format's module, and it is inside of `atomic_path`."""
    calls = {
        (source, dotted(node.func), id(node))
        for source in SOURCES
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Call)
        and dotted(node.func) in {f"{name}.write" for name in (*FORMATS, "safetensors", "module", "self.module")}
    }
    assert {(source, name) for source, name, _ in calls} == {("converters/writing.py", "self.module.write")}
    assert len(calls) == 1
    (block,) = (
        node
        for node in ast.walk(tree_of("converters/writing.py"))
        if isinstance(node, ast.With)
        and "files.atomic_path"
        in {dotted(item.context_expr.func) for item in node.items if isinstance(item.context_expr, ast.Call)}
    )
    assert any(isinstance(node, ast.Call) and dotted(node.func) == "self.module.write" for node in ast.walk(block))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open(path, 'w')", True),
        ("open(path, mode='ab')", True),
        ("open(path, 'r+b')", True),
        ("open(path)", False),
        ("open(path, 'rb')", False),
        ("h5py.File(path, 'w')", True),
        ("Path(path).write_text('x')", True),
        ("files.write_text(path, 'x')", False),
        ("figure.savefig('out.png')", True),
        ("figure.savefig(buffer, format='png')", False),
        ("np.save(path, array)", True),
    ],
)
def test_6_would_notice(code, expected):
    assert writes(ast.parse(code, mode="eval").body) is expected  # type: ignore[arg-type]


def pytest_of(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, cwd=ROOT)


def test_7_an_unknown_backend_stops_the_tests():
    result = pytest_of("--collect-only", "tests/parity/test_layers.py", CLIP_TEST_BACKENDS="numpy,tensorflow")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "CLIP_TEST_BACKENDS names ['tensorflow']; choose from torch, paddle, nnabla, numpy." in result.stderr


def test_7_a_requested_backend_that_does_not_import_fails(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is missing')")
    result = pytest_of("tests/backends/test_parameters.py", CLIP_TEST_BACKENDS="torch", PYTHONPATH=str(tmp_path))
    assert result.returncode == pytest.ExitCode.TESTS_FAILED
    assert "libtorch.so is missing" in result.stdout
    assert "skipped" not in result.stdout
    assert "passed" not in result.stdout


def test_10_importing_loads_nothing():
    """No vocabulary, no weights, no picture, no framework, no connection, as the interpreter's audit events tell."""
    code = f"""
import sys
events = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = str(arguments[0])
        if {str(ROOT)!r} in path and not path.endswith((".py", ".pyc")) or path.endswith((".gz", ".h5", ".pt", ".png")):
            events.append(path)
    if event == "socket.connect":
        events.append(event)
sys.addaudithook(hook)
import backends, clip, clip_core, clip_core.architecture, clip_core.text.loading, converters, exporters
found = set(sys.modules) & set({(*FRAMEWORKS, "grain", "matplotlib", "scipy")!r})
print(events, found)
"""
    assert [line for line in run_python(code).splitlines() if "__pycache__" not in line] == ["[] set()"]


def test_10_choosing_a_backend_imports_no_framework():
    code = """
import sys, backends
assert backends.available()
try:
    backends.get("tensorflow")
except RuntimeError:
    pass
assert backends.get("numpy").CLIP
print(sorted(set(sys.modules) & {"torch", "paddle", "nnabla"}))
"""
    assert run_python(code).strip() == "[]"


# Layers that PyTorch and Paddle bring along, and what only some frameworks have a use for: NNabla computes in one
# precision, in contexts, and has a scope to publish to; NumPy computes inference alone, on one device. PyTorch
# and Paddle have layers with gradients that are faster on CPUs than their own.
NATIVE = {
    f"{layer}{method}"
    for layer in ("Linear", "Conv2d", "Sequential", "Embedding")
    for method in ("", ".__init__", ".__iter__", ".forward")
}
OF_SOME = {"LayerNorm.__init__", "BatchNorm2d.__init__", "BatchNorm2d.forward", "Transformer.dtype", "Mixer.dtype"} | {
    *("ConvNorm.forward", "CLIP.device", "CLIP.publish", "CLIP.spelled_parameters", "CLIP._in_context"),
    *(f"{name}{method}" for name in ("OneDNNLinear", "RepeatedBias") for method in ("", ".forward", ".backward")),
}
NOT_NUMPY = {
    "Observed",
    "Block",
    "Block.drop",
    "PatchDropout",
    "PatchDropout.__init__",
    "PatchDropout.forward",
    "CLIP.tower",
    "CLIP.recompute_blocks",
    "CLIP._pixels",
    "CLIP._tokens",
    "CLIP._evaluation",
    "CLIP._observed",
    "CLIP._set",
}
TWINS_ARE = "the files of a tower are listed in CONTRIBUTING.md, section Where things go"
TWINS = ["layers.py", "model.py"] + [f"towers/{path.name}" for path in (ROOT / "clip_core" / "towers").glob("[!_]*.py")]


# What models are made of so that code written for other packages' classes finds it there, and what that replaces.
LIKE_OTHERS = {"QuickGELU", "QuickGELU.forward", "Blocks", "Blocks.forward", "MLP.forward"} | {
    *("Attention.forward", "Attention.forward_tokens", "Transformer.is_whole", "Transformer.pool", "Mixer.pool"),
    *(f"ResidualAttentionBlock.{name}" for name in ("attn_mask", "has_mask_of", "attention")),
    *(f"CLIP.{name}" for name in ("dtype", "initialize_parameters", "build_attention_mask")),
    *("CLIP.__dir__", "CLIP._is_summarised", "CLIP._keeps_image_tower"),
}


def outline(folder: str, file: str) -> list[str]:
    """The classes of a file with their methods, in order."""
    assert (ROOT / folder / file).is_file(), f"{folder}/{file} is missing; {TWINS_ARE}"
    found = []
    for node in tree_of(f"{folder}/{file}").body:
        if isinstance(node, ast.ClassDef):
            methods = [inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)]
            found += [node.name, *(f"{node.name}.{'forward' if name == '__call__' else name}" for name in methods)]
    return [name for name in found if name not in NATIVE | OF_SOME | LIKE_OTHERS]


# What attention looks at, which graphs do not show, and what that shares with the forward passes.
OF_MAPS = {
    *("Attention.maps", "Attention._projected", "ResidualAttentionBlock.attention_maps"),
    *("AttentionPool.attention_maps", "AttentionPool._queries"),
    *("AttentionPool2d.attention_maps", "AttentionPool2d._tokens"),
}


@pytest.mark.parametrize("file", [file for file in TWINS if file not in ("model.py", "towers/parts.py")])
def test_the_writer_of_graphs_is_a_twin_of_the_reference(file):
    shown = [name for name in outline("backends/numpy", file) if name not in OF_MAPS]
    assert outline("exporters/onnx", file) == shown
    assert len(outline("exporters/onnx", file)) > 2


# Modules of PyTorch itself, which other code looks for by their classes.
OF_PYTORCH = {
    *("Attention", "Attention.__init__", "Attention.forward_pooled", "Attention.forward_queries"),
    *("Attention.maps", "Attention._projected"),
    *("BatchNorm2d", "BatchNorm2d.__init__", "BatchNorm2d.forward"),
}


@pytest.mark.parametrize("framework", ["paddle", "nnabla", "numpy"])
@pytest.mark.parametrize("file", [file for file in TWINS if file != "towers/parts.py"])
def test_twin_files_define_the_same_classes_in_the_same_order(framework, file):
    expected = outline("backends/torch", file)
    if framework == "numpy":
        expected = [name for name in expected if name not in NOT_NUMPY]
    assert [name for name in outline(f"backends/{framework}", file) if name not in OF_PYTORCH] == expected
    assert len(expected) > 2


# What only one framework has a use for: other axis orders, sharded weights, contexts of NNabla, its two ways to update.
OF_ONE_TRAINER = {"gradient_of", "_reordered", "_whole", "tower_context", "squared_norm"} | {
    *("_on_device", "_update_on_cpu", "_update_on_gpu", "_solver_state")
}
OF_ONE_PROCESS_GROUP = {"CPUCommunicator", "all_gather", "all_reduce", "has_gpu", "gpu_communicator", "mpirun"}


@pytest.mark.parametrize("framework", ["paddle", "nnabla"])
@pytest.mark.parametrize(("file", "own"), [("training.py", OF_ONE_TRAINER), ("process_group.py", OF_ONE_PROCESS_GROUP)])
def test_twin_files_of_training_define_the_same_functions_in_the_same_order(framework, file, own):
    def names(folder: str) -> list[str]:
        parts = [node for node in tree_of(f"backends/{folder}/{file}").body if getattr(node, "name", "") not in own]
        found = [
            node.name
            for part in parts
            for node in ([part, *part.body] if isinstance(part, ast.ClassDef) else [part])
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        return [name for name in found if name not in own]

    assert names(framework) == names("torch")
    assert len(names("torch")) > 5


def test_one_function_resizes_pictures():
    """What Pillow gives of a resizing along both axes depends on its version (`clip_core.preprocess.resize`)."""
    found = lines_with(r"\.(resize|thumbnail)\(|ImageOps", *PACKAGES, "benchmarks", "examples")
    assert {line.split(":")[0] for line in found} == {"clip_core/preprocess.py"}
    assert len(found) == 1


def test_no_two_test_files_have_the_same_name():
    """Without packages in between, pytest could import one of them only."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 50
    assert sorted(set(names)) == sorted(names)


def test_tests_share_modules_and_import_no_other_test():
    """What two test files need is in a module, since pytest imports tests and conftest.py in a way of its own."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    imported = {
        (path.relative_to(ROOT).as_posix(), module)
        for path in files
        for module in imports_of(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert ("tests/test_documents.py", "tests.requested.BACKENDS") in imported
    assert [
        found for found in sorted(imported) if re.search(r"^tests(\.\w+)*\.(test_\w+|conftest)(\.|$)", found[1])
    ] == []


TOWERS = {tower.__name__: tower for tower in (*IMAGE_TOWERS.values(), *TEXT_TOWERS.values())}


def tables_of(source: str) -> dict[str, dict[str, str]]:
    """The dictionaries at the top of a file: name -> key -> the name that stands behind it."""
    return {
        dotted(node.target): {
            ast.literal_eval(key): dotted(value) for key, value in zip(node.value.keys, node.value.values)
        }
        for node in tree_of(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
    }


@pytest.mark.parametrize("file", [file for file in TWINS if file.startswith("towers/") and file != "towers/parts.py"])
def test_every_tower_of_the_core_is_in_its_table(file):
    classes = [node.name for node in tree_of(f"clip_core/{file}").body if isinstance(node, ast.ClassDef)]
    missing = [name for name in classes if name not in TOWERS]
    assert not missing, f"The tables of clip_core/towers/__init__.py lack {', '.join(missing)} of clip_core/{file}"
    assert classes


@pytest.mark.parametrize("package", [*(f"backends/{name}" for name in backends.NAMES), "exporters/onnx"])
def test_every_tower_is_in_every_table(package):
    tables = tables_of(f"{package}/towers/__init__.py")
    for name, towers in (("IMAGE_TOWERS", IMAGE_TOWERS), ("TEXT_TOWERS", TEXT_TOWERS)):
        expected = {kind: tower.__name__ for kind, tower in towers.items()}
        missing = [f'"{kind}": {tower}' for kind, tower in expected.items() if tables[name].get(kind) != tower]
        assert not missing, f"{name} of {package}/towers/__init__.py lacks {', '.join(missing)}"
        assert tables[name] == expected


def test_every_tower_has_an_example():
    """On which tests/test_towers.py asks everything of it, in every backend."""
    examples = {type(tower).__name__ for example in EXAMPLES.values() for tower in example.towers.values()}
    missing = sorted(TOWERS.keys() - examples)
    assert not missing, f"tests/towers.py has no example of {', '.join(missing)}"


def test_only_towers_and_the_registry_name_a_tower():
    """What others need is asked of the tower or of the tables, so that a new tower changes none of them."""
    in_core = [source for source in SOURCES if re.fullmatch(r"clip_core/towers/(?!parts|__init__)\w+\.py", source)]
    towers = {node.name for source in in_core for node in tree_of(source).body if isinstance(node, ast.ClassDef)}
    assert len(towers) >= len(in_core) > 2

    def names(source: str) -> set[str]:
        nodes = list(ast.walk(tree_of(source)))
        imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        return imported | {dotted(node).split(".")[-1] for node in nodes if isinstance(node, ast.Name | ast.Attribute)}

    naming = {source for source in SOURCES if "/towers/" not in source and names(source) & towers}
    under_openais_names = {"backends/torch/openai.py", "clip/model.py"}
    assert naming == {"clip_core/models.py", *under_openais_names}


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_files_and_tests_that_documents_name_are_there(document):
    """A path may have a pattern, or ``x`` for any backend; a file without a folder may be anywhere."""
    codes = re.findall(r"`([\w./*-]+(?:\.py|/))(?:::(\w+))?`", (ROOT / document).read_text(encoding="utf-8"))
    for path, test in codes:
        pattern = path.replace("backends/x", "backends/*").strip("/")
        found = list(ROOT.glob(pattern))
        if "/" not in pattern:
            found += [file for folder in (*PACKAGES, "benchmarks", "tests") for file in (ROOT / folder).rglob(pattern)]
        assert found, f"{document} names {path}"
        assert all(f"def {test}(" in file.read_text(encoding="utf-8") for file in found if test), f"{path}::{test}"
