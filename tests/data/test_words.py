"""Words of Wikipedia dumps: what is counted, what is refused, and what is kept of an interrupted count."""

from __future__ import annotations

import bz2
from collections.abc import Sequence
from pathlib import Path

import pytest

from clip_core.data.collection import dump as dumps
from clip_core.data.collection import words
from clip_core.data.collection.words import Word, count_words, plain_text, words_in
from clip_core.errors import ClipError

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11"><siteinfo>heads</siteinfo>'


def page(text: str, space: int = 0, extra: str = "") -> str:
    return (
        f"<page><title>titles</title><ns>{space}</ns><id>1</id>{extra}<revision><id>2</id><comment>comments</comment>"
        f'<text bytes="9" xml:space="preserve">{text}</text></revision></page>'
    )


def write(path: Path, *streams: str) -> Path:
    path.write_bytes(b"".join(bz2.compress(stream.encode()) for stream in streams))
    return path


def counted(path: Path, minimum: int = 1) -> dict[str, int]:
    return {word.word: word.times for word in count_words(path, path.with_name("work"), minimum).words}


def test_articles_alone_are_counted(tmp_path):
    pages = [
        page("Zebra zebra and ZEBRA, apple's apple"),
        page("talked", space=1),
        page("", extra='<redirect title="X" />'),
        page("apple").replace(
            "</page>", "<revision><text>pear &lt;b&gt;apple&lt;/b&gt; &amp;amp;</text></revision></page>"
        ),
    ]
    path = write(tmp_path / "dump.xml.bz2", HEAD + "".join(pages) + "</mediawiki>")
    found = count_words(path, tmp_path / "work", 1)
    assert found.articles == 2
    assert found.words == [Word("apple", 3), Word("zebra", 3), Word("pear", 1)]
    assert counted(path, 3) == {"apple": 3, "zebra": 3}
    assert not (tmp_path / "work").exists()


def test_words():
    assert list(words_in("Don't stop: naïve Ünder-café's 3D x हिन्दी")) == [
        *("don", "stop", "naïve", "ünder", "café", "हिन्दी")
    ]


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''A''' [[house]] and [[house|two houses]]s", "A house and two housess"),
        ("one {{infobox|a={{nested}}}} two }} three {{ four", "one two three four"),
        ("one <!-- two {{ --> three <ref>four</ref> five<ref name=a/> six", "one three five six"),
        ("one {| class=a\n| two {{x}}\n|} three", "one three"),
        ("[[File:a.jpg|thumb|200px|The old [[Ship|boat]] sails]] [[Category:Boats]]", "The old boat sails"),
        ("[[File:a.jpg]] see https://a.example/path?x [https://b.example label] &nbsp; __TOC__ <br/>", "see label"),
        ("<math>x</math>one<REF>two</REF>", "one"),
        ("{{ one <!-- two }} three --> four", "one four"),
    ],
)
def test_the_text_of_an_article(wikitext, expected):
    assert [*words._WORD.findall(plain_text(wikitext))] == words._WORD.findall(expected)


@pytest.mark.parametrize(
    "unit",
    ["[[", "{{", "{|", "<!--", "<ref>", "<ref", "</ref>", "[[a|", "]]", "}}", "http://", "<", "&", "{{}}{{", "__A"],
)
def test_a_text_of_marks_is_read_in_time_proportional_to_its_length(unit):
    list(words_in(unit * (300_000 // len(unit))))  # squared, this would take hours


def test_counts_beyond_the_memory_are_exact(tmp_path, monkeypatch):
    text = " ".join(f"{letter}{other} shared" for letter in "abcdefgh" for other in "abcdefgh")
    path = write(tmp_path / "dump.xml.bz2", HEAD + page(text) + page(text) + page("shared") + "</mediawiki>")
    expected = counted(path)
    monkeypatch.setattr(words, "MOST_IN_MEMORY", 7)
    assert counted(path) == expected
    assert expected["shared"] == 129
    assert expected["gh"] == 2


def test_an_interrupted_count_goes_on_between_streams(tmp_path, monkeypatch):
    """The first streams are not read again, and nothing is counted twice."""
    monkeypatch.setattr(words, "SAVED_EVERY", 1)
    streams = [HEAD, page("one first") * 3, page("one second"), page("one third"), "</mediawiki>"]
    path, work = write(tmp_path / "dump.xml.bz2", *streams), tmp_path / "work"

    def interrupted(done: int, size: int) -> None:
        assert size == path.stat().st_size
        if done == size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_words(path, work, 1, interrupted)
    starts: list[int] = []
    own = dumps.Articles.__init__
    monkeypatch.setattr(
        dumps.Articles, "__init__", lambda self, path, file, start: starts.append(start) or own(self, path, file, start)
    )
    found = count_words(path, work, 1)
    assert starts == [sum(len(bz2.compress(stream.encode())) for stream in streams[:4])]
    assert found.articles == 5
    assert found.words == [Word("one", 5), Word("first", 3), Word("second", 1), Word("third", 1)]
    assert not work.exists()
    # What is left of another dump is not taken for this one's.
    with pytest.raises(KeyboardInterrupt):
        count_words(path, work, 1, interrupted)
    other = write(tmp_path / "other.xml.bz2", HEAD + page("another text") + "</mediawiki>")
    assert count_words(other, work, 1).words == [Word("another", 1), Word("text", 1)]


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(ClipError) as caught:
        count_words(path, path.with_name("work"))
    for part in parts:
        assert part in str(caught.value)
    assert not path.with_name("work").exists()


BOMB = "<!DOCTYPE mediawiki [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]>"
OUTSIDE = '<!DOCTYPE mediawiki [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("streams", "part"),
    [
        ([BOMB + HEAD + page("&b;") + "</mediawiki>"], "declares a document type"),
        ([OUTSIDE + HEAD + page("&a;") + "</mediawiki>"], "declares a document type"),
        ([HEAD + page("&b;") + "</mediawiki>"], "undefined entity"),
        ([HEAD + page("a")], "no element found"),
        (["<html></html>"], "begins with <html>, not with <mediawiki>"),
        (["no xml"], "is damaged, or no dump"),
        ([HEAD + "</mediawiki>"], "has no article"),
        ([HEAD + "<page a='" + "a" * (6 << 20)], "a tag or comment of more than"),
    ],
)
def test_what_is_no_dump(tmp_path, streams: Sequence[str], part):
    refused(write(tmp_path / "dump.xml.bz2", *streams), part, "dump.xml.bz2")


def test_a_file_that_expands_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(dumps, "_UNPACKED", 1 << 10)
    refused(write(tmp_path / "dump.xml.bz2", HEAD + "<page/>" * 10_000), "as no text does")


def test_a_page_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(dumps, "MOST_CHARACTERS", 1000)
    path = write(tmp_path / "dump.xml.bz2", HEAD + page("a" * 1001) + "</mediawiki>")
    refused(path, "a page of more than 1000 characters")


def test_damaged_files(tmp_path):
    whole = write(tmp_path / "dump.xml.bz2", HEAD + page("a text of words"), "</mediawiki>").read_bytes()
    for data, part in (
        (b"", "is empty or cut short behind byte 0"),
        (whole[:-5], "is empty or cut short behind byte"),
        (whole[:20] + b"\0\0\0\0" + whole[24:], "is no bz2 file, or damaged behind byte"),
        (whole + b"rest", "is no bz2 file, or damaged behind byte"),
        (b"<mediawiki/>", "is no bz2 file, or damaged behind byte 0"),
    ):
        (tmp_path / "dump.xml.bz2").write_bytes(data)
        refused(tmp_path / "dump.xml.bz2", part)
