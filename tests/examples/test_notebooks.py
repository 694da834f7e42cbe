"""Each notebook is what its script says, without outputs; `make test-notebooks` runs them."""

from __future__ import annotations

import json

import pytest

from tests.notebooks import FOLDER, METADATA, notebook_of, scripts

SCRIPTS = pytest.mark.parametrize("script", scripts(), ids=lambda script: script.stem)


def test_every_script_has_a_notebook_and_every_notebook_a_script():
    found = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
    assert found == [script.stem for script in scripts()]
    assert len(found) > 5


@SCRIPTS
def test_a_notebook_is_what_its_script_says(script):
    found = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert found == notebook_of(script), f"{script.name} has changed; run: python -m tests.notebooks"


@SCRIPTS
def test_a_notebook_has_no_traces_of_a_run_or_of_a_machine(script):
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert notebook["metadata"] == METADATA
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@SCRIPTS
def test_a_notebook_begins_with_a_title_and_says_how_to_take_a_larger_model(script):
    first, second = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"][:2]
    assert (first["cell_type"], second["cell_type"]) == ("markdown", "code")
    assert first["source"][0].startswith("# ")
    assert '"ViT-B/32"' in "".join(first["source"])
