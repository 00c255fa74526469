"""Rows of a batch: what is read from JSONL and CSV, what is wrong with it, and where."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_chars.cli.batch import reader as rows
from sora_chars.cli.batch.reader import COLUMNS, Problem, Row
from sora_chars.models import CharacterRequest, Clip

PROVIDERS = ("kie", "kkiai")
WISH = {"from_task": "t1", "clip": "1,3", "prompt": "A dog"}


def read(content: bytes, form: str = "jsonl") -> list[Row | Problem]:
    """All rows and problems."""
    return list(rows.read_rows(io.BytesIO(content), form, provider="kie", providers=PROVIDERS))


def good(content: bytes, form: str = "jsonl") -> list[Row]:
    """The rows of content without problems."""
    found = read(content, form)
    assert all(isinstance(row, Row) for row in found), found
    return [row for row in found if isinstance(row, Row)]


def complaint(content: bytes, form: str = "jsonl") -> str:
    """What is wrong with the one row."""
    (problem,) = read(content, form)
    assert isinstance(problem, Problem), problem
    return str(problem)


def jsonl(*wishes: object) -> bytes:
    """A line for each."""
    return "".join(f"{json.dumps(wish)}\n" for wish in wishes).encode()


def to_csv(*wishes: dict[str, str], ends: str = "\r\n") -> bytes:
    """A table of all columns."""
    file = io.StringIO()
    table = csv.DictWriter(file, COLUMNS, lineterminator=ends)
    table.writeheader()
    table.writerows(wishes)
    return file.getvalue().encode()


def test_a_row_is_a_request_for_a_provider() -> None:
    """All columns arrive; the provider is the row's own, else the batch's."""
    wish = {"key": "dog", "provider": "kkiai", "video": "https://example.com/dog.mp4", "clip": "1,3"}
    texts = {"name": "Dog", "prompt": "A dog", "safety": "no violence"}

    (own, default) = good(jsonl(wish | texts, WISH | {"key": "cat"}))

    assert own.request == CharacterRequest(key="dog", video=wish["video"], clip=Clip(1, 3), **texts)
    assert (own.line, own.provider, default.line, default.provider) == (1, "kkiai", 2, "kie")


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"from_task": "t1", "clip": "1,3", "prompt": "A dog"}\r\n',
        b'\n \r\n{"prompt": "A dog", "clip": [1, 3.0], "from_task": "t1", "name": null}',
        b'{"from_task": "t1", "clip": "1.0, 3", "prompt": "A dog", "provider": "kie"}\n\n',
    ],
)
def test_the_key_of_a_row_is_made_of_what_it_asks_for(content: bytes) -> None:
    """However the same wish is written, it has the same key, which is short and can be copied."""
    (row,) = good(content)
    assert row.key == good(jsonl(WISH))[0].key
    assert row.key.startswith("row-")
    assert len(row.key) == 36


@pytest.mark.parametrize("change", [{"prompt": "A cat"}, {"provider": "kkiai"}, {"name": "Rex"}, {"clip": "1,2"}])
def test_another_wish_has_another_key(change: dict[str, str]) -> None:
    """So does the same wish at another provider."""
    assert good(jsonl(WISH | change))[0].key != good(jsonl(WISH))[0].key


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_table_gives_the_same_rows(ends: str, mark: bytes) -> None:
    """CSV with the same columns is the same, an empty cell is a field that was not given."""
    assert [row.request for row in good(mark + to_csv(WISH, ends=ends), "csv")] == [
        row.request for row in good(jsonl(WISH))
    ]


def test_the_lines_of_a_table_are_counted_through_quoted_line_breaks() -> None:
    """A row is where it begins; empty lines and empty rows are none."""
    content = b'clip,prompt,from_task\n"1,3","A\ndog",t1\n\n,,\n"1,3","one, ""two""",t2\n"3,1",x,t3\n'
    first, second, bad = read(content, "csv")
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.line, first.request.prompt) == (2, "A\ndog")
    assert (second.line, second.request.prompt) == (6, 'one, "two"')
    assert str(bad) == 'line 7: clip must satisfy 0 <= start < end in seconds, got "3,1"'


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ([], "must be a JSON object"),
        ({}, "exactly one of from_task and video must be given, got neither"),
        (WISH | {"video": "a.mp4"}, "exactly one of from_task and video must be given, got both"),
        (WISH | {"clip": "soon"}, "clip must be"),
        (WISH | {"clip": 3}, "clip must be a Clip"),
        (WISH | {"prompt": 3}, "prompt must be text, got int"),
        (WISH | {"key": 7}, "key must be 1 to 200 printable characters, got 7"),
        (WISH | {"key": ""}, "key must be 1 to 200 printable characters, got ''"),
        (WISH | {"provider": "kay"}, "provider: must be one of kie, kkiai, got 'kay'"),
        (WISH | {"provider": ["kie"]}, "provider: must be one of kie, kkiai, got ['kie']"),
        (WISH | {"prompt": "\ud83d"}, "prompt: must be whole Unicode characters"),
        (WISH | {"prompt": "a\0b"}, "prompt: must not hold a NUL character"),
        (WISH | {"promt": "x", "\x1b": "y"}, r"'\x1b', 'promt': no such column, there are key, provider,"),
    ],
)
def test_a_wrong_row_says_what_is_wrong(wish: Any, says: str) -> None:
    """The field is named, and what came."""
    assert complaint(jsonl(wish)).startswith(f"line 1: {says}")


def test_all_that_is_wrong_with_a_row_is_told() -> None:
    """Not only the first of it."""
    assert complaint(jsonl({"promt": "x", "provider": "kay", "key": 7})).count("; ") == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"clip": ', "no JSON: Expecting value at column 10"),
        (b'{"clip": NaN}', "no JSON: NaN is no JSON"),
        (b"[" * 100_000, "no JSON: nested too deeply"),
        (b'{"prompt": "\xff"}', "not UTF-8: invalid start byte at byte 13"),
        (b" " * (1 << 20) + b"\n{}", "longer than 1048576 bytes; the rest was not read"),
    ],
)
def test_what_is_no_json_is_told(content: bytes, says: str) -> None:
    """The reason is one short line."""
    assert complaint(content) == f"line 1: {says}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"clip;from_task\n", "line 1: the columns must be different ones of key, provider, from_task, video, clip, "),
        (b"clip,,clip\n1,2,3", "name, prompt, safety, got '', 'clip'; the rows were not read"),
        (b'"clip\n', "line 1: no CSV: unexpected end of data"),
        (b"clip,from_task\n1,3,t1\n", "line 2: 3 cells, but the first line names 2 columns"),
        (b'\n\nclip,from_task\n"1,3"x,t1\n', "line 4: no CSV: ',' expected after '\"'"),
        (b"from_task,prompt\nt1,\xff\n", "line 2: prompt: must be whole Unicode characters, in UTF-8"),
        (b"from_task\n" + b"x" * 200_000, "line 2: no CSV: field larger than field limit"),
        (b"from_task\n" + b"x" * (1 << 20) + b"x\nt1", "line 2: no CSV: a line longer than 1048576 bytes; the rest"),
    ],
)
def test_what_is_no_table_is_told(content: bytes, says: str) -> None:
    """A bad first line ends the reading, since nothing after it can be understood."""
    assert says in complaint(content, "csv")


@pytest.mark.parametrize(
    ("head", "form"),
    [(b'{"key"', "jsonl"), (b"[{", "jsonl"), (b"\xef\xbb\xbf\r\n {", "jsonl"), (b"key,clip", "csv"), (b"", "csv")],
)
def test_the_form_is_guessed_from_the_first_bytes(head: bytes, form: str) -> None:
    """JSON begins with a bracket, and no column does."""
    assert rows.guess_form(head) == form


@given(st.binary(), st.sampled_from(rows.FORMS))
def test_no_bytes_surprise_the_reader(content: bytes, form: str) -> None:
    """Whatever a file holds, it is rows and problems on lines that exist."""
    for found in read(content, form):
        assert 1 <= found.line <= content.count(b"\n") + 1
        assert str(found).isprintable() or isinstance(found, Row)


@given(st.text(st.sampled_from('{}[]":,\r\n \\ukeyclip13t"') | st.characters(codec="utf-8")))
def test_no_text_surprises_the_reader(text: str) -> None:
    """The same for what looks more like rows."""
    for form in rows.FORMS:
        read(b'{"clip": ' + text.encode(), form)
        read(b"key,from_task\n" + text.encode(), form)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
wishes = st.fixed_dictionaries(
    {"from_task": texts.filter(str.strip), "clip": st.just("1,3")},
    optional={
        "key": st.text(st.characters(categories=("L", "N", "S")), min_size=1, max_size=200),
        "provider": st.sampled_from(PROVIDERS),
        "name": texts,
        "prompt": texts,
        "safety": texts,
    },
)


@given(st.lists(wishes))
def test_what_is_written_is_read_again(written: list[dict[str, str]]) -> None:
    """Both forms give the same requests, with the same keys, in order."""
    from_json, from_csv = good(jsonl(*written)), good(to_csv(*written), "csv")
    assert [(row.provider, row.request) for row in from_json] == [(row.provider, row.request) for row in from_csv]
    for wish, row in zip(written, from_json, strict=True):
        fields = {name: value for name, value in wish.items() if name != "provider"}
        assert row.provider == wish.get("provider", "kie")
        assert row.request == CharacterRequest(**fields)
        assert row.key == wish.get("key", row.key)
