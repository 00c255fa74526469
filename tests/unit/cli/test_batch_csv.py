"""CSV as Excel, LibreOffice and pandas write it, in any encoding, and a JSON array in a file."""

from __future__ import annotations

import io
from typing import Any

import click
import pytest

from sora_chars.cli.batch import reader
from sora_chars.cli.batch.reader import Problem, Row
from sora_chars.cli.commands.batch import FileOptions, delimiter_character, text_encoding

TASK = "7118f712a5efa1d0f1c3f2ac1b3f9a55"
PANDAS_UTF_16 = "key\tfrom_task\tclip\tprompt\nrex\tt1\t1,3\tA dög\nbello\tt2\t0.5,2\t\n".encode("utf-16-le")
PANDAS_CP1252 = b'key,from_task,clip,prompt\nrex,t1,"1,3",A d\xf6g\nbello,t2,"0.5,2",\n'
PANDAS = {  # each as written by pandas 3.1.1
    "index": b',key,from_task,clip,prompt\n0,rex,t1,"1,3",A d\xc3\xb6g\n1,bello,t2,"0.5,2",\n',
    "index-read-again": b'Unnamed: 0,key,from_task,clip,prompt\n0,rex,t1,"1,3",A d\xc3\xb6g\n1,bello,t2,"0.5,2",\n',
    "semicolon": b"key;from_task;clip;prompt\nrex;t1;1,3;A d\xc3\xb6g\nbello;t2;0.5,2;\n",
    "tab-utf-16": b"\xff\xfe" + PANDAS_UTF_16,
    "carriage-return": b'\xef\xbb\xbfkey,from_task,clip,prompt\rrex,t1,"1,3",A d\xc3\xb6g\rbello,t2,"0.5,2",\r',
    "empty-row": b'key,from_task,clip,prompt\nrex,t1,"1,3",A d\xc3\xb6g\nbello,t2,"0.5,2",\n,,,\n',
    "json": b'[{"key":"rex","from_task":"t1","clip":"1,3","prompt":"A d\\u00f6g"},'
    b'{"key":"bello","from_task":"t2","clip":"0.5,2","prompt":null}]',
}
EXCEL = {
    "blank-rows": f'key,from_task,clip,prompt\r\nrex,{TASK},"1,3",A dog\r\n\r\n\r\n,,,\r\n   \r\n'.encode(),
    "semicolon": f"key;from_task;clip;prompt\r\nrex;{TASK};1,3;A dog\r\n".encode(),
    "empty-columns": f'key,from_task,clip,prompt,,\r\nrex,{TASK},"1,3",A dog,,\r\n,,,,,\r\n'.encode(),
    "trailing-blanks": f'key,from_task,clip,prompt\r\nrex ,{TASK} ,"1,3 ",A dog \r\n'.encode(),
    "utf-16": f'\ufeffkey,from_task,clip,prompt\r\nrex,{TASK},"1,3",A dog\r\n'.encode("utf-16-le"),
    "utf-16-be": f'\ufeffkey\tfrom_task\tclip\tprompt\r\nrex\t{TASK}\t"1,3"\tA dog\r\n'.encode("utf-16-be"),
    "separator": f"sep=;\r\nkey;from_task;clip;prompt\r\nrex;{TASK};1,3;A dog\r\n".encode(),
    "separator-tab": f"SEP=\t\r\nkey\tfrom_task\tclip\tprompt\r\nrex\t{TASK}\t1,3\tA dog\r\n".encode(),
    "pipe": f'"key"|"from_task"|"clip"|"prompt"\r"rex"|"{TASK}"|"1,3"|"A dog"\r'.encode(),
    "blanks-after-commas": f'key, from_task, clip, prompt\nrex, {TASK}, "1,3", A dog\n'.encode(),
    "short-row": f'key,from_task,clip,prompt,name,safety\nrex,{TASK},"1,3",A dog\n'.encode(),
}


def read(content: bytes, *, encoding: str | None = None, delimiter: str | None = None) -> list[Row | Problem]:
    """Return all rows and problems of a file whose format is detected."""
    stream = io.BufferedReader(io.BytesIO(content))
    found = list(
        reader.read_rows(
            stream,
            reader.guess_format(stream, encoding),
            provider="kie",
            providers=("kie",),
            encoding=encoding,
            delimiter=delimiter,
        )
    )
    assert not stream.closed
    return found


def problem_in(content: bytes, *, encoding: str | None = None, delimiter: str | None = None) -> str:
    """Return the problem of the only row."""
    (problem,) = read(content, encoding=encoding, delimiter=delimiter)
    assert isinstance(problem, Problem), problem
    return str(problem)


def texts(found: list[Row | Problem]) -> list[tuple[str | None, ...]]:
    """Return what the rows contain, as text."""
    requests: list[Any] = [row.request for row in found if isinstance(row, Row)]
    assert len(requests) == len(found), found
    return [(each.key, each.from_task, str(each.clip), each.prompt) for each in requests]


@pytest.mark.parametrize("content", PANDAS.values(), ids=PANDAS)
def test_reads_what_pandas_writes(content: bytes) -> None:
    """An index, another delimiter, UTF-16, carriage returns, rows without values and a JSON array are all read."""
    assert texts(read(content)) == [("rex", "t1", "1,3", "A dög"), ("bello", "t2", "0.5,2", None)]


@pytest.mark.parametrize("content", EXCEL.values(), ids=EXCEL)
def test_reads_what_spreadsheets_write(content: bytes) -> None:
    """Rows of blanks, empty columns, blanks around cells, short rows and a separator line change no request."""
    assert texts(read(content)) == [("rex", TASK, "1,3", "A dog")]


@pytest.mark.parametrize(("content", "encoding"), [(PANDAS_CP1252, "cp1252"), (PANDAS_UTF_16, "utf-16-le")])
def test_encoding_is_an_option(content: bytes, encoding: str) -> None:
    """An encoding that the first bytes do not show is given; without it, one sentence names the option."""
    assert [row[3] for row in texts(read(content, encoding=encoding))] == ["A dög", None]
    assert "--encoding " in problem_in(content)


def test_delimiter_is_an_option() -> None:
    """A delimiter that is never guessed is given."""
    content = b"from_task#clip#prompt\nt1#1,3#A; dog\n"
    assert texts(read(content, delimiter="#")) == [(None, "t1", "1,3", "A; dog")]
    assert "got 'from_task#clip#prompt'; the rows were not read" in problem_in(content)


def test_lines_are_counted_from_the_start_of_the_file() -> None:
    """The separator line, empty lines before the first line, and rows of blanks are counted."""
    assert problem_in(b"sep=;\n\n;;\nkey;from_task\n;\n\na;\n").startswith("line 7: exactly one of from_task")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            b"key,from_task\na,b,c\n",
            "line 2: the row has 3 cells, but the first line names 2 columns",
        ),
        (
            b",from_task\ndog,t1\n",
            "line 2: column 1 has no name in the first line, but this row has 'dog' in it",
        ),
        (
            b"key,,from_task\na,x,t1\n",
            "line 2: column 2 has no name in the first line, but this row has 'x' in it",
        ),
        (
            b"from_task\nt1\nd\xf6g\nt3\n",
            "line 3: the file is not valid UTF-8; select its encoding, such as --encoding cp1252",
        ),
        (
            b'[{"from_task": "d\xf6g"}]',
            "line 1: the file is not valid UTF-8; select its encoding, such as --encoding cp1252",
        ),
        (
            b"\xff\xfek\x00e\x00\x00\xd8y\x00",
            "line 1: the file is not valid UTF-16; select its encoding, such as --encoding cp1252",
        ),
        (b'[{"from_task": "t1"},\n oops]', "line 2: invalid JSON: Expecting value at column 2"),
        (
            b"PK\x03\x04\x14\x00xl/workbook.xml",
            "line 1: the file is a ZIP archive, such as an Excel workbook; save it as CSV with UTF-8 encoding",
        ),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1",
            "line 1: the file is an old Office document; save it as CSV with UTF-8 encoding",
        ),
        (b"\x1f\x8b\x08\x00", "line 1: the file is compressed by gzip; decompress it first"),
        (b"[NaN]", "line 1: invalid JSON: NaN is no JSON"),
    ],
)
def test_names_the_cause(content: bytes, text: str) -> None:
    """What cannot be read is rejected with one sentence."""
    found = [str(each) for each in read(content) if isinstance(each, Problem)]
    assert found == [text]


def test_objects_of_an_array_have_their_lines() -> None:
    """The problem of an object names the line at which it begins, also in an indented array."""
    content = b'\xef\xbb\xbf[\n {\n  "from_task": "t1"\n },\n {\n  "from_task": "t2"\n }, 7,\n\n {"video": ""}\n]'
    assert [row.line for row in read(content)] == [2, 5, 7, 9]
    assert [row.line for row in read(content.replace(b"\n", b"\r"))] == [2, 5, 7, 9]


@pytest.mark.parametrize(("text", "character"), [(";", ";"), ("tab", "\t"), (r"\t", "\t"), ("\t", "\t")])
def test_delimiters(text: str, character: str) -> None:
    """A tab, which is hard to type, has a name."""
    assert delimiter_character(text) == character


@pytest.mark.parametrize("text", ["", ";;", "x", "1", '"', "'", "\n", " "])
def test_rejects_other_delimiters(text: str) -> None:
    """A delimiter is one character that cells do not consist of."""
    with pytest.raises(click.BadParameter, match="is not one character"):
        delimiter_character(text)


@pytest.mark.parametrize("text", ["utf8000", "hex", "a\0b"])
def test_rejects_unknown_encodings(text: str) -> None:
    """A codec that is unknown, or is none of text, is bad usage."""
    with pytest.raises(click.BadParameter, match="is not the name of an encoding"):
        text_encoding(text)
    assert text_encoding("cp1252") == "cp1252"


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [("a.JSON", None, "jsonl"), ("a.tsv", None, "csv"), ("a.txt", None, "csv"), ("a.csv", "jsonl", "jsonl")],
)
def test_format_of_a_file(file: str, given: str | None, expected: str) -> None:
    """The format is the one that was given, or that of the suffix, or that of the first bytes."""
    stream = io.BufferedReader(io.BytesIO(b"key"))
    assert FileOptions(file, given, None, None).format_of(stream) == expected
