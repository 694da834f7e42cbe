"""What a shell is told when the tabulator key is pressed behind the start of a command."""

from __future__ import annotations

import pytest

from clip.command.lazily import SUMMARIES


@pytest.fixture
def completions(run, monkeypatch):
    """The words that complete the last of a line, as bash asks for them."""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_CLIP_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        result = run()
        assert (result.code, result.err) == (0, "")
        return result.out.split()

    return ask


def test_commands(completions):
    assert completions("clip ") == list(SUMMARIES)
    assert completions("clip rec") == ["recipes"]
    assert completions("clip paint") == []


def test_commands_of_a_group(completions):
    assert completions("clip tokenizer ") == ["train", "encode", "decode", "info"]
    assert {"shapes", "imagenet", "probe"} <= set(completions("clip evaluate "))


def test_options(completions):
    assert completions("clip --install") == ["--install-completion"]
    assert completions("clip train --lo") == ["--load"]
    assert completions("clip evaluate shapes --pictures") == ["--pictures-per-class"]


def test_values_of_an_option(completions):
    assert completions("clip tokenizer train --kind ") == ["openai", "bytes"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installing(shell, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    result = run("--install-completion", shell)
    assert (result.code, result.err) == (0, "")
    (script,) = (path for path in tmp_path.rglob("*clip*") if path.is_file())
    assert "_CLIP_COMPLETE" in script.read_text()
    assert str(script) in result.out
