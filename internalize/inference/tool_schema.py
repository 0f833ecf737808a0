"""The JSON schema of a tool's arguments: validates calls, and prints the arguments compactly for a policy.

A schema may come from an untrusted server: it may be malformed, and a reference in it must never be fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from internalize.records import ToolSpec

Schema = Mapping[str, Any]
_DEEPEST = 4  # levels of nested objects and references that are spelled out
_LONGEST = 200  # characters of a reason
_NAMING = frozenset({"properties", "$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"})  # may name arguments


def problem(schema: Schema, arguments: Mapping[str, Any]) -> str | None:
    """Why `arguments` do not fit the schema, in one sentence; None if they fit.

    This is JSON Schema (2020-12 unless `$schema` says otherwise), except that arguments which the schema does not name
    are refused unless it allows them explicitly or names none at all. A schema that cannot be applied refuses nothing;
    the tool itself then has to validate.
    """
    from jsonschema.exceptions import SchemaError, best_match  # noqa: PLC0415 - a quarter of a second to import
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        for validator in _validators(json.dumps(schema)):
            if error := best_match(validator.iter_errors(arguments)):
                return _sentence(error)
    except (SchemaError, Unresolvable, RecursionError, ValueError, ArithmeticError):
        return None
    return None


def tool_dict(tool: ToolSpec) -> dict[str, Any]:
    """A tool in the OpenAI chat format."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.argument_schema)}
    return {"type": "function", "function": function}


def defect(schema: Schema) -> str | None:
    """Why calls cannot be validated, or not fully, against this schema; None if they can."""
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415
    from jsonschema_specifications import REGISTRY  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415

    resolver = REGISTRY.with_resource("", DRAFT202012.create_resource(schema)).resolver()
    reference = ""
    try:
        validator = _validators(json.dumps(schema))[0]
        for reference in _references(schema):
            resolver.lookup(reference)
        validator.is_valid({})  # fails on circular references
    except SchemaError as error:
        return _sentence(error)
    except Unresolvable:
        return f"the reference {reference[:_LONGEST]!r} leads nowhere"
    except RecursionError:
        return "a reference leads back to itself"
    return None


@lru_cache(maxsize=512)
def _validators(text: str) -> tuple[Any, ...]:
    """The validator of a schema, then one that refuses arguments the schema does not name. Raises SchemaError."""
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415
    from jsonschema_specifications import REGISTRY  # noqa: PLC0415

    schema = json.loads(text)
    dialect = schema.get("$schema")
    kind = validators.validator_for({"$schema": dialect} if isinstance(dialect, str) else {}, Draft202012Validator)
    kind.check_schema(schema)
    validator = kind(schema, registry=REGISTRY)  # the default registry would fetch unknown references
    if not _NAMING & schema.keys():
        return (validator,)
    keyword = "unevaluatedProperties"
    closed = validators.extend(kind, {keyword: Draft202012Validator.VALIDATORS[keyword]})
    return (validator, closed({keyword: False, **schema}, registry=REGISTRY))


def _sentence(error: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    words = " ".join(error.message.replace("Unevaluated properties", "Additional properties").split())
    text = f"{where.removeprefix('.')}: {words}" if where else words
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2  # the value comes first in the message, and what is wrong with it last
    return f"{text[:half]} ... {text[5 - half :]}"


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _references(inner)


def properties(schema: Schema) -> dict[str, Any]:
    """The schemas of the arguments by name, including those of referenced and combined schemas."""
    return _properties(schema, schema)


def required(schema: Schema) -> frozenset[str]:
    """Names of the arguments that a call must have."""
    return _required(schema, schema)


def _properties(schema: Schema, root: Schema) -> dict[str, Any]:
    parts = _parts(schema, root, ("allOf", "anyOf", "oneOf"))
    found = [own for part in parts if isinstance(own := part.get("properties"), Mapping)]
    return {name: argument for own in found for name, argument in own.items()}


def _required(schema: Schema, root: Schema) -> frozenset[str]:
    found = [part.get("required") for part in _parts(schema, root, ("allOf",))]
    return frozenset(str(name) for names in found if isinstance(names, list | tuple) for name in names)


def _parts(schema: Any, root: Schema, combining: Sequence[str], depth: int = _DEEPEST) -> Iterator[Schema]:
    """The schema, the schema it refers to, and the schemas it combines by the keywords `combining`."""
    if not isinstance(schema, Mapping) or depth < 0:
        return
    yield schema
    inner = [_resolved(str(schema["$ref"]), root)] if "$ref" in schema else []
    for keyword in combining:
        inner += found if isinstance(found := schema.get(keyword), list) else []
    for part in inner:
        yield from _parts(part, root, combining, depth - 1)


def only_argument(schema: Schema) -> str | None:
    """The name of the argument if there is exactly one."""
    names = list(properties(schema))
    return names[0] if len(names) == 1 else None


def takes_text(schema: Schema) -> bool:
    """Whether there is exactly one argument and its type is string."""
    arguments = list(properties(schema).values())
    return len(arguments) == 1 and isinstance(arguments[0], Mapping) and arguments[0].get("type") == "string"


def shape(schema: Schema) -> str:
    """The arguments on one line: `{"url": string, "limit"?: integer}`, where `?` marks optional ones.

    `...` stands for further arguments of any name; a tool without arguments gives "".
    """
    return "" if (text := _object(schema, schema, _DEEPEST)) == "{}" else text


def shapes(schema: Schema) -> dict[str, str]:
    """Each argument's type in words, followed by `(optional)` for optional ones."""
    needed = required(schema)
    types = {
        name: _type(argument, schema, _DEEPEST) + ("" if name in needed else " (optional)")
        for name, argument in properties(schema).items()
    }
    return types | ({"...": "any (optional)"} if _open(schema) else {})


def _open(schema: Schema) -> bool:
    further = schema.get("additionalProperties")
    return further is True or isinstance(further, Mapping) or not _NAMING & schema.keys()


def _object(schema: Schema, root: Schema, depth: int) -> str:
    needed = _required(schema, root)
    parts = [
        f'"{name}"{"" if name in needed else "?"}: {_type(argument, root, depth - 1)}'
        for name, argument in _properties(schema, root).items()
    ]
    return "{" + ", ".join([*parts, *["..."] * _open(schema)]) + "}"


def _type(schema: Any, root: Schema, depth: int) -> str:
    if not isinstance(schema, Mapping) or depth < 0:
        return "any"
    kind = schema.get("type", "any")
    if "$ref" in schema:
        text = _type(_resolved(str(schema["$ref"]), root), root, depth - 1)
    elif isinstance(values := schema.get("enum", [schema["const"]] if "const" in schema else None), list):
        text = " | ".join(str(value) for value in values)
    elif isinstance(choices := schema.get("anyOf") or schema.get("oneOf"), list):
        text = " | ".join(_type(choice, root, depth) for choice in choices if choice != {"type": "null"})
    elif kind == "array":
        text = f"[{_type(schema.get('items'), root, depth - 1)}]"
    elif kind == "object" and isinstance(schema.get("properties"), Mapping) and schema["properties"]:
        text = _object(schema, root, depth)
    else:
        text = " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    return text


def _resolved(reference: str, root: Schema) -> Any:
    target: Any = root
    for part in reference.removeprefix("#/").split("/"):
        target = target.get(part) if isinstance(target, Mapping) else None
    return target
