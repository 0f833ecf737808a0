"""Arguments of a tool against its JSON schema: validated with a reason, printed compactly, whatever a server sends."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internalize.inference.tool_schema import defect, problem, properties, required, shape, shapes

STRING = {"type": "string"}


def schema(*needed: str, **named: Any) -> dict[str, Any]:
    return {"type": "object", "properties": named, "required": list(needed)}


FIND = schema(
    "url",
    url=STRING,
    limit={"type": "integer", "minimum": 1, "maximum": 10},
    how={"enum": ["fast", "slow"]},
    tags={"type": "array", "items": STRING, "maxItems": 2},
    place={"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
)
EITHER = {
    "type": "object",
    "anyOf": [schema("id", id=STRING), schema("name", name=STRING)],
}
MERGED = {"type": "object", "allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": schema("id", id=STRING)}}
OLD = {"$schema": "http://json-schema.org/draft-07/schema#", **schema("pair", pair={"items": [STRING, STRING]})}


@pytest.mark.parametrize(
    ("of", "arguments"),
    [
        (FIND, {"url": "u"}),
        (FIND, {"url": "u", "limit": 10, "how": "fast", "tags": ["a", "b"], "place": {"lat": 1, "lon": 2}}),
        (FIND, {"url": "u", "limit": 3.0}),  # an integer by value
        (EITHER, {"id": "1"}),
        (EITHER, {"name": "a"}),
        (MERGED, {"id": "1"}),
        (OLD, {"pair": ["a", "b"]}),
        ({"type": "object"}, {"anything": [1]}),
        ({}, {"anything": [1]}),
        (schema() | {"additionalProperties": True}, {"a": 1}),
        (schema() | {"additionalProperties": {}}, {"a": 1}),
        (schema() | {"patternProperties": {"^x-": STRING}}, {"x-a": "1"}),
        (schema(), {}),
    ],
)
def test_what_fits(of: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert problem(of, arguments) is None
    assert defect(of) is None


@pytest.mark.parametrize(
    ("of", "arguments", "named"),
    [
        (FIND, {}, "'url'"),
        (FIND, {"url": 5}, "url: 5"),
        (FIND, {"url": "u", "limit": "3"}, "limit: '3'"),
        (FIND, {"url": "u", "limit": True}, "limit: True"),
        (FIND, {"url": "u", "limit": 11}, "maximum of 10"),
        (FIND, {"url": "u", "limit": None}, "limit: None"),
        (FIND, {"url": "u", "how": "faster"}, "how: 'faster'"),
        (FIND, {"url": "u", "tags": ["a", 2]}, "tags[1]: 2"),
        (FIND, {"url": "u", "tags": ["a", "b", "c"]}, "tags: "),
        (FIND, {"url": "u", "place": {}}, "place: 'lat'"),
        (FIND, {"url": "u", "depth": 1}, "'depth'"),
        (EITHER, {}, "{}"),
        (EITHER, {"id": 1}, "id: 1"),
        (EITHER, {"id": "1", "colour": "red"}, "'colour'"),
        (MERGED, {"id": "1", "colour": "red"}, "'colour'"),
        (OLD, {"pair": ["a", 2]}, "pair[1]: 2"),
        (OLD, {"pair": [], "more": 1}, "'more'"),
        (schema(), {"a": 1}, "'a'"),
        (schema() | {"additionalProperties": STRING}, {"a": 1}, "a: 1"),
    ],
)
def test_what_does_not_fit_is_named(of: dict[str, Any], arguments: dict[str, Any], named: str) -> None:
    reason = problem(of, arguments)
    assert reason
    assert named in reason
    assert "\n" not in reason


def test_a_reason_is_short_however_long_the_value() -> None:
    reason = problem(FIND, {"url": ["x" * 10_000]}) or ""
    assert len(reason) <= 200
    assert reason.endswith("is not of type 'string'")


@pytest.mark.parametrize(
    ("of", "named"),
    [
        (schema(a={"type": "str"}), "'str'"),
        ({"type": "object", "properties": ["a"]}, "['a']"),
        ({"type": "object", "required": True}, "True"),
        (schema(a={"enum": 5}), "5"),
        (schema(a={"pattern": "("}), "'('"),
        (schema(a={"$ref": "#/$defs/Gone"}), "'#/$defs/Gone'"),
        (schema(a={"$ref": "https://example.org/a.json"}), "'https://example.org/a.json'"),
        ({"$ref": "#"}, "itself"),
        ({"$schema": 5, **schema(a={"type": "str"})}, "5"),
        ({"$schema": "https://example.org/mine", **schema(a={"type": "str"})}, "'str'"),
    ],
)
def test_a_schema_that_cannot_be_applied_is_named_and_refuses_nothing(
    of: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("a reference was fetched")

    monkeypatch.setattr(socket, "getaddrinfo", opened)
    monkeypatch.setattr(socket, "create_connection", opened)
    reason = defect(of)
    assert reason
    assert named in reason
    assert "\n" not in reason
    assert problem(of, {"a": 1}) is None
    assert isinstance(shape(of), str)
    assert isinstance(shapes(of), dict)


def test_arguments_behind_references_and_choices_are_shown() -> None:
    assert shape(MERGED) == '{"id": string}'
    assert shape(EITHER) == '{"id"?: string, "name"?: string}'
    assert (list(properties(EITHER)), required(EITHER), required(MERGED)) == (["id", "name"], set(), {"id"})
    assert shape({"type": "object"}) == "{...}"
    assert shape(schema("a", a=STRING) | {"additionalProperties": True}) == '{"a": string, ...}'
    assert shape(schema()) == ""
    assert shapes(schema("a", a=STRING, b=STRING)) == {"a": "string", "b": "string (optional)"}
    assert shapes({"type": "object"}) == {"...": "any (optional)"}


KEYWORDS = st.sampled_from(
    ["type", "properties", "required", "enum", "const", "$ref", "items", "anyOf", "allOf", "$schema", "pattern", "a"]
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["object", "string", "array", "#", "#/properties/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
    max_leaves=12,
)


@given(of=st.dictionaries(KEYWORDS, ODD, max_size=5), arguments=st.dictionaries(st.sampled_from("ab"), ODD))
def test_no_schema_crashes(of: dict[str, Any], arguments: dict[str, Any]) -> None:
    problem(of, arguments)
    assert "\n" not in (defect(of) or "")
    assert isinstance(shape(of), str)
    assert isinstance(shapes(of), dict)
