"""The JSON schema of a tool's arguments: read compactly by a policy, checked before a call counts as an action.

Left out: types, ranges and patterns of values (the environment's answer to a wrong value teaches more than
"unknown action"). What must not change: a call with a missing or an unknown argument is no action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]
_DEEPEST = 4  # levels of nested objects and references that are spelled out


def properties(schema: Schema) -> dict[str, Any]:
    """The arguments by name."""
    found = schema.get("properties")
    return dict(found) if isinstance(found, Mapping) else {}


def required(schema: Schema) -> frozenset[str]:
    """Names of the arguments that a call must have."""
    found = schema.get("required")
    return frozenset(str(name) for name in found) if isinstance(found, list | tuple) else frozenset()


def fits(schema: Schema, arguments: Mapping[str, Any]) -> bool:
    """Whether no required argument is missing and none is unknown (unless the schema allows further ones)."""
    further = schema.get("additionalProperties")
    known = properties(schema)
    open_ended = further is True or (isinstance(further, Mapping) and bool(further))
    return required(schema) <= arguments.keys() and (open_ended or arguments.keys() <= known.keys())


def only_argument(schema: Schema) -> str | None:
    """The name of the argument if there is exactly one."""
    names = list(properties(schema))
    return names[0] if len(names) == 1 else None


def takes_text(schema: Schema) -> bool:
    """Whether the only argument is a text."""
    own = properties(schema).get(only_argument(schema) or "")
    return isinstance(own, Mapping) and own.get("type") == "string"


def shape(schema: Schema) -> str:
    """The arguments on one line: `{"url": string, "limit"?: integer}`; `?` marks those that may be left out."""
    return _object(schema, schema, _DEEPEST)


def shapes(schema: Schema) -> dict[str, str]:
    """Each argument's type in words, `(optional)` after those that may be left out."""
    wanted = required(schema)
    return {
        name: _type(own, schema, _DEEPEST) + ("" if name in wanted else " (optional)")
        for name, own in properties(schema).items()
    }


def _object(schema: Schema, root: Schema, depth: int) -> str:
    wanted = required(schema)
    parts = [
        f'"{name}"{"" if name in wanted else "?"}: {_type(own, root, depth - 1)}'
        for name, own in properties(schema).items()
    ]
    return "{" + ", ".join(parts) + "}"


def _type(schema: Any, root: Schema, depth: int) -> str:
    if not isinstance(schema, Mapping) or depth < 0:
        return "any"
    kind = schema.get("type", "any")
    if "$ref" in schema:
        text = _type(_resolved(str(schema["$ref"]), root), root, depth - 1)
    elif "enum" in schema or "const" in schema:
        text = " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    elif isinstance(choices := schema.get("anyOf") or schema.get("oneOf"), list):
        text = " | ".join(_type(choice, root, depth) for choice in choices if choice != {"type": "null"})
    elif kind == "array":
        text = f"[{_type(schema.get('items'), root, depth - 1)}]"
    elif kind == "object" and properties(schema):
        text = _object(schema, root, depth)
    else:
        text = " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    return text


def _resolved(reference: str, root: Schema) -> Any:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
