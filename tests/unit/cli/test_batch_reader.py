"""The rows of a batch: reading JSONL and CSV, and the line of each problem."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_chars.cli.batch import reader
from sora_chars.cli.batch.reader import COLUMNS, Problem, Row
from sora_chars.models import CharacterRequest, Clip, TaskRequest

if TYPE_CHECKING:
    from collections.abc import Callable

PROVIDERS = ("kie", "kkiai")
REQUEST = {"from_task": "t1", "clip": "1,3", "prompt": "A dog"}


def read(content: bytes, file_format: str = "jsonl") -> list[Row | Problem]:
    """Return all rows and problems."""
    stream = io.BufferedReader(io.BytesIO(content))
    return list(reader.read_rows(stream, file_format, provider="kie", providers=PROVIDERS))


def good(content: bytes, file_format: str = "jsonl") -> list[Row]:
    """Return the rows of content that has no problems."""
    found = read(content, file_format)
    assert all(isinstance(row, Row) for row in found), found
    return [row for row in found if isinstance(row, Row)]


def problem_in(content: bytes, file_format: str = "jsonl") -> str:
    """Return the problem of the only row."""
    (problem,) = read(content, file_format)
    assert isinstance(problem, Problem), problem
    return str(problem)


def jsonl(*requests: object) -> bytes:
    """Return one line of JSON for each request."""
    return "".join(f"{json.dumps(request)}\n" for request in requests).encode()


def to_csv(*requests: dict[str, str], ends: str = "\r\n") -> bytes:
    """Return a CSV file with all columns."""
    file = io.StringIO()
    table = csv.DictWriter(file, COLUMNS, lineterminator=ends)
    table.writeheader()
    table.writerows(requests)
    return file.getvalue().encode()


def test_row_is_a_request_for_a_provider() -> None:
    """All columns are read; a row without a provider uses the default."""
    request = {"key": "dog", "provider": "kkiai", "video": "https://example.com/dog.mp4", "clip": "1,3"}
    texts = {"name": "Dog", "prompt": "A dog", "safety": "no violence"}

    (own, default) = good(jsonl(request | texts, REQUEST | {"key": "cat"}))

    assert own.request == CharacterRequest(key="dog", video=request["video"], clip=Clip(1, 3), **texts)
    assert (own.line, own.provider, default.line, default.provider) == (1, "kkiai", 2, "kie")


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"from_task": "t1", "clip": "1,3", "prompt": "A dog"}\r\n',
        b'\n \r\n{"prompt": "A dog", "clip": [1, 3.0], "from_task": "t1", "name": null}',
        b'{"from_task": "t1", "clip": "1.0, 3", "prompt": "A dog", "provider": "kie"}\n\n',
    ],
)
def test_default_key_is_a_hash_of_the_request(content: bytes) -> None:
    """The same request has the same key, in whatever way it is written."""
    (row,) = good(content)
    assert row.key == good(jsonl(REQUEST))[0].key
    assert row.key.startswith("row-")
    assert len(row.key) == 36


@pytest.mark.parametrize("change", [{"prompt": "A cat"}, {"provider": "kkiai"}, {"name": "Rex"}, {"clip": "1,2"}])
def test_other_requests_have_other_keys(change: dict[str, str]) -> None:
    """The provider and every column are part of the key."""
    assert good(jsonl(REQUEST | change))[0].key != good(jsonl(REQUEST))[0].key


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_has_the_same_rows(ends: str, mark: bytes) -> None:
    """CSV gives the same requests as JSONL; an empty cell is a field that is not given."""
    assert [row.request for row in good(mark + to_csv(REQUEST, ends=ends), "csv")] == [
        row.request for row in good(jsonl(REQUEST))
    ]


def test_lines_are_counted_through_quoted_line_breaks() -> None:
    """A row has the number of its first line; empty lines and rows of empty cells are skipped."""
    content = b'clip,prompt,from_task\n"1,3","A\ndog",t1\n\n,,\n"1,3","one, ""two""",t2\n"3,1",x,t3\n'
    first, second, bad = read(content, "csv")
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert isinstance(first.request, CharacterRequest)
    assert isinstance(second.request, CharacterRequest)
    assert (first.line, first.request.prompt) == (2, "A\ndog")
    assert (second.line, second.request.prompt) == (6, 'one, "two"')
    assert str(bad) == 'line 7: clip must satisfy 0 <= start < end in seconds, got "3,1"'


def test_job_rows() -> None:
    """A row with a model is a task of kie's job API; in CSV its input is JSON. Such rows stand beside the others."""
    job = {"model": "wan/2-7-image", "input": {"prompt": "a, b"}, "key": "k"}
    expected = TaskRequest(model="wan/2-7-image", input={"prompt": "a, b"}, key="k")
    (row,) = good(jsonl(job))
    assert row.request == expected
    content = b'key,model,input,from_task,clip,prompt\nk,wan/2-7-image,"{""prompt"": ""a, b""}",,,\n,,,t1,"1,3",A dog\n'
    first, second = good(content, "csv")
    assert first.request == expected
    assert isinstance(second.request, CharacterRequest)
    (bare,) = good(jsonl({"model": "m"}))
    assert bare.request == TaskRequest(model="m")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (7, "row must be a JSON object"),
        ({}, "exactly one of from_task, video and images must be given, got none"),
        (REQUEST | {"video": "a.mp4"}, "exactly one of from_task, video and images must be given, got from_task and"),
        (REQUEST | {"clip": "soon"}, "clip must be"),
        (REQUEST | {"clip": 3}, "clip must be a Clip"),
        (REQUEST | {"prompt": 3}, "prompt must be text, got int"),
        (REQUEST | {"key": 7}, "key must be 1 to 200 printable characters, got 7"),
        (REQUEST | {"key": ""}, "key must be 1 to 200 printable characters, got ''"),
        (REQUEST | {"provider": "kay"}, "provider must be one of kie, kkiai, got 'kay'"),
        (REQUEST | {"provider": ["kie"]}, "provider must be one of kie, kkiai, got ['kie']"),
        (REQUEST | {"prompt": "\ud83d"}, "prompt must be valid Unicode"),
        ({"images": ["\ud83d"]}, "images must be valid Unicode"),
        ({"images": ["a.png"] * 5}, "images must hold 1 to 4 images, got 5"),
        (REQUEST | {"prompt": "a\0b"}, "prompt must not contain a NUL character"),
        ({"input": {}}, "model must be given with input"),
        ({"model": "m", "input": [1]}, "input must be a JSON object, got list"),
        ({"model": "m", "input": "{"}, "input has invalid JSON: Expecting property name"),
        ({"model": "m", "input": {"a": {"b": "\ud83d"}}}, "input must be valid Unicode"),
        (
            {"model": "m", "prompt": "a"},
            "prompt must not be given, since there is no such field; the fields are",
        ),
        (REQUEST | {"promt": "x", "\x1b": "y"}, r"'\x1b', 'promt': unknown column, expected one of key, provider,"),
    ],
)
def test_problem_names_the_field(fields: Any, text: str) -> None:
    """A problem names the field and the value."""
    assert problem_in(jsonl(fields)).startswith(f"line 1: {text}")


def test_all_problems_of_a_row_are_listed() -> None:
    """A row with four mistakes has four problems."""
    assert problem_in(jsonl({"promt": "x", "provider": "kay", "key": 7})).count("; ") == 3


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"clip": ', "invalid JSON: Expecting value at column 10"),
        (b'{"clip": NaN}', "invalid JSON: NaN is no JSON"),
        (b"[" * 100_000, "invalid JSON: nested too deeply"),
        (b'{"prompt": "\xff"}', "the file is not valid UTF-8; select its encoding, such as --encoding cp1252"),
        (b" " * (1 << 20) + b"\n{}", "the line is longer than 1048576 characters; the rest of the file was not read"),
    ],
)
def test_invalid_json(content: bytes, text: str) -> None:
    """The reason is one short line."""
    assert problem_in(content) == f"line 1: {text}"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            b"clip;from task\n",
            "line 1: the first line must name different columns out of key, provider, from_task, video, images, clip, ",
        ),
        (b"clip,,clip\n1,2,3", "safety, voice, model, input, got 'clip'; the rows were not read"),
        (b'"clip\n', "line 1: invalid CSV: unexpected end of data"),
        (b'\n\nclip,from_task\n"1,3"x,t1\n', "line 4: invalid CSV: ',' expected after '\"'"),
        (b"from_task,prompt\nt1,\xff\n", "line 2: the file is not valid UTF-8; select its encoding"),
        (b"from_task\n" + b"x" * 200_000, "line 2: invalid CSV: field larger than field limit"),
        (
            b"from_task\n" + b"x" * (1 << 20) + b"x\nt1",
            "line 2: the line is longer than 1048576 characters; the rest",
        ),
    ],
)
def test_invalid_csv(content: bytes, text: str) -> None:
    """A first line that names no columns ends the reading."""
    assert text in problem_in(content, "csv")


@pytest.mark.parametrize(
    ("head", "file_format"),
    [(b'{"key"', "jsonl"), (b"[{", "jsonl"), (b"\xef\xbb\xbf\r\n {", "jsonl"), (b"key,clip", "csv"), (b"", "csv")],
)
def test_format_is_detected_from_the_first_bytes(head: bytes, file_format: str) -> None:
    """JSON begins with a bracket, and no column name does."""
    assert reader.guess_format(io.BufferedReader(io.BytesIO(head)), None) == file_format


@given(st.binary(), st.sampled_from(reader.FORMATS))
def test_reads_any_bytes(content: bytes, file_format: str) -> None:
    """Any file gives rows and problems, whose lines exist."""
    for found in read(content, file_format):
        assert 1 <= found.line <= content.count(b"\n") + content.count(b"\r") + 1
        assert str(found).isprintable() or isinstance(found, Row)


@given(st.text(st.sampled_from('{}[]":,\r\n \\ukeyclip13t"') | st.characters(codec="utf-8")))
def test_reads_any_text(text: str) -> None:
    """Text that resembles rows raises nothing."""
    for file_format in reader.FORMATS:
        read(b'{"clip": ' + text.encode(), file_format)
        read(b"key,from_task\n" + text.encode(), file_format)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
requests = st.fixed_dictionaries(
    {"from_task": st.text(st.characters(categories=("L", "N")), min_size=1), "clip": st.just("1,3")},
    optional={
        "key": st.text(st.characters(categories=("L", "N", "S")), min_size=1, max_size=200),
        "provider": st.sampled_from(PROVIDERS),
        "name": texts,
        "prompt": texts,
        "safety": texts,
    },
)


@given(st.lists(requests))
def test_both_formats_give_the_same_requests(written: list[dict[str, str]]) -> None:
    """Written as JSONL and as CSV, requests are read with the same keys and in order, without surrounding blanks."""
    from_json, from_csv = good(jsonl(*written)), good(to_csv(*written), "csv")
    assert [(row.provider, row.request) for row in from_json] == [(row.provider, row.request) for row in from_csv]
    for columns, row in zip(written, from_json, strict=True):
        fields = {name: value.strip() for name, value in columns.items() if name != "provider"}
        assert row.provider == columns.get("provider", "kie")
        assert row.request == CharacterRequest(**fields)
        assert row.key == columns.get("key", row.key)


@pytest.mark.parametrize(
    ("content", "file_format"),
    [
        (b'{"images": ["a.png", "https://a.example/b.png"], "voice": "v1"}', "jsonl"),
        (b'{"images": "a.png; https://a.example/b.png;", "voice": "v1"}', "jsonl"),
        (b"images,voice\na.png;https://a.example/b.png,v1\n", "csv"),
    ],
)
def test_images_of_a_row(content: bytes, file_format: str) -> None:
    """A row names its images as a list or, in one cell, separated by semicolons."""
    (row,) = good(content, file_format)
    assert row.request == CharacterRequest(images=["a.png", "https://a.example/b.png"], voice="v1")


@pytest.mark.parametrize("nest", [lambda n: '{"a":' * n + "1" + "}" * n, lambda n: '{"a":' + "[" * n + "]" * n + "}"])
@pytest.mark.parametrize("depth", [101, 700, 980])
def test_deep_input(nest: Callable[[int], str], depth: int) -> None:
    """The input of a job that is nested too deeply is a problem of its row, and the rows behind it are read."""
    good = '{"model": "m"}'
    first, second = read(f'{{"model": "m", "input": {nest(depth)}}}\n{good}\n'.encode(), "jsonl")
    assert "nested" in str(first)
    assert isinstance(second, Row)


@pytest.mark.parametrize("row", [b'{"model": "m", "input": {"seed": %d}}', b'[{"model": "m", "input": {"seed": %d}}]'])
def test_large_integers_are_sent_as_they_are(row: bytes) -> None:
    """An integer of any size in the input of a job is exact."""
    (found,) = read(row % (2**70 + 1), "jsonl")
    assert isinstance(found, Row)
    assert isinstance(found.request, TaskRequest)
    assert found.request.input == {"seed": 2**70 + 1}
