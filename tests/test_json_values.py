"""Values from JSON of others."""

import dataclasses

import pytest

from bert_jax.errors import UserError
from bert_jax.json_values import parse_json, typed


@dataclasses.dataclass(frozen=True)
class File:
    bytes: int
    sha256: str = ""


def test_surrogate_pairs_are_characters_and_halves_are_refused():
    assert parse_json(r'{"text": "\ud83d\ude00"}', "a") == {"text": "\U0001f600"}
    with pytest.raises(UserError, match=r"^a\.jsonl, line 3: \\ud83d is half a character"):
        parse_json(r'{"text": ["\ud83d"]}', "a.jsonl, line 3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "not JSON"),
        ("", "not JSON"),
    ],
)
def test_what_is_not_json_is_one_line_with_its_place(text, message):
    with pytest.raises(UserError, match=f"^place: .*{message}") as error:
        parse_json(text, "place")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"bytes": "3"}}, r"^p: field \[\.\.\.\]\.bytes: expected int, got str"),
        ({"a": {"bytes": True}}, r"expected int, got bool"),
        ({"a": {}}, r"missing required field bytes"),
        ([], r"^p: expected object, got array"),
        (None, r"^p: expected object, got null"),
    ],
)
def test_other_types_are_refused_by_field(value, message):
    with pytest.raises(UserError, match=message):
        typed(value, dict[str, File], "p")


def test_a_dataclass_is_read_with_defaults_and_without_unknown_fields():
    assert typed({"bytes": 3, "new": 1}, File, "p") == File(3)
