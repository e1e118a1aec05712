"""Text and JSON from untrusted sources."""

from __future__ import annotations

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_caption.io.text import invalid_character, printable, read_json, read_text, shown


def test_json_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"é": [1, 2.5, null, {"a": 1}], "b": {"a": 2}}', encoding="utf-8")
    assert read_json(path) == {"é": [1, 2.5, None, {"a": 1}], "b": {"a": 2}}
    assert read_text(path, path.stat().st_size).startswith('{"é"')


def test_a_byte_order_mark_at_the_beginning_is_skipped(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"\ufeffa": 1}', encoding="utf-8-sig")
    assert read_json(path) == {"\ufeffa": 1}
    assert read_text(path) == '{"\ufeffa": 1}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON in UTF-8: Expecting value"),
        (b'{"a": 1', "not JSON in UTF-8: Expecting ',' delimiter: line 1 column 8"),
        ("é".encode("latin-1"), "not a text in UTF-8: .* byte 0xe9 in position 0"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}', "not JSON in UTF-8: Unexpected UTF-8 BOM"),
        (b"[" * 100_000, "not JSON in UTF-8: nested too deep"),
        (b'{"a": NaN}', "NaN is not valid JSON"),
        (b"[-Infinity]", "-Infinity is not valid JSON"),
        (b'[{"a": 1, "b": 2, "a": [3]}]', r"an object has the key 'a' twice, with 1 and with \[3\]"),
        (b"9" * 5000, "not JSON in UTF-8: Exceeds the limit"),
    ],
)
def test_invalid_json_is_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[1,2]")
    assert read_json(path, 5) == [1, 2]
    with pytest.raises(ValueError, match=r"a\.json: has 5 bytes, more than the limit 4"):
        read_json(path, 4)
    with pytest.raises(ValueError, match=r"none\.json: cannot be read: No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"not a file$"):
        read_json(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # to wait for its writer would hang
        with pytest.raises(ValueError, match=r"not a file$"):
            read_text(tmp_path / "pipe")


def test_printable_text_keeps_blanks_and_joiners_alone():
    name = "a\u00a0b\u202fc\u3000d \U0001f469\u200d\U0001f467.jpg"
    assert printable(name) == name
    assert printable("a\u2028\u200b\x00\udcff\ufeff") == "a" + 5 * "\ufffd"


def test_strange_characters():
    assert invalid_character("a dog's café, 日本\n\t\u200d\x92") is None
    assert invalid_character("a\x1b[2J") == "\x1b"
    assert invalid_character("\ud83d") == "\ud83d"
    assert invalid_character("a\0") == "\0"


def test_shown_is_short():
    assert shown("a") == "'a'"
    assert shown(list(range(1000)), 10) == "[0, 1, ..."
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list, nested too deep"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@given(VALUES)
def test_any_json_is_read(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    assert read_json(path) == value


def test_a_key_that_occurs_twice_is_found_in_linear_time_and_named_in_short(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{" + "".join(f'"{i}": 0,' for i in range(200_000)) + '"199999": 1}', encoding="utf-8")
    started = time.process_time()
    with pytest.raises(ValueError, match="the key '199999' twice, with 0 and with 1"):
        read_json(path)
    assert time.process_time() - started < 10  # in quadratic time it takes minutes
    path.write_text(f'{{"{"x" * 10**6}": 1, "{"x" * 10**6}": 2}}', encoding="utf-8")
    with pytest.raises(ValueError, match="twice, with 1 and with 2") as caught:
        read_json(path)
    assert len(str(caught.value)) < 500
