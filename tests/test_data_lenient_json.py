"""Values are read, never run: caps come first, and what is accepted beside JSON is named."""

import pytest

from data.lenient_json import LiteralError, find_end, read_values


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("42", "not_an_object"),
        ("", "not_an_object"),
        ("{'a': ...}", "invalid_json"),
        ("{'a': b''}", "invalid_json"),
        ("{1: 2}", "invalid_json"),
        ("[" * 100_000, "too_deep"),
        ("{" + " " * 300_000 + "}", "too_long"),
        ('{"a": ' + "1" * 5_000 + "}", "number_too_long"),
        ('{"a": 0x' + "f" * 3_600 + "}", "number_too_long"),
        ("[{0x" + "f" * 3_600 + "}]", "number_too_long"),
        ("[-0x" + "f" * 3_600 + " + 1j]", "number_too_long"),
        ("[0x" + "f" * 54 + "]", "number_too_long"),
        ('{"a": "\\ud800"}', "invalid_unicode"),
        ("{'a': 1e999}", "not_finite"),
        ('{"a": 1', "invalid_json"),
        ("{'a': -Infinity}", "invalid_json"),
        ("[" + "-" * 100_000 + "1]", "invalid_json"),
        ("```" + " " * 150_000 + "x", "not_an_object"),
    ],
)
def test_values_that_are_refused(text: str, code: str) -> None:
    with pytest.raises(LiteralError) as caught:
        read_values(text)
    assert caught.value.code == code


def test_values_that_are_accepted() -> None:
    assert read_values('{"a": "x\ny"}') == ([{"a": "x\ny"}], ["control_character"])
    assert read_values('{"a": 1} {"b": [2]}') == ([{"a": 1}, {"b": [2]}], ["several_values"])
    assert read_values("{'a': (1, None), 'b': -2.5}") == (
        [{"a": [1, None], "b": -2.5}],
        ["python_literal"],
    )
    assert find_end('{"a": "}]\\"}"} x', 0) == 14 and find_end('{"a": "', 0) is None
