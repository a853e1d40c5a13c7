"""JSON schema to a bounded grammar: every answer it accepts is strict JSON of a known maximum length."""

import json
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

# llama.cpp expands a repetition into as many rules. Some versions reject 2000; all treat 2001 as unbounded.
MAX_REPETITIONS = 1999
MAX_INTEGERS = 1000  # an integer, and what a number has before its point, is written as one alternative per value
DECIMALS = 3  # of a number, at most

# A class of allowed characters, not a negated one: llama.cpp matches an incomplete UTF-8 character by the code points
# it may still become, so a negated class would exclude every character that shares its first byte with an excluded one.
# Excluded: the quote, the backslash, both blocks of control characters, and the surrogates.
_CHARACTER = r'[ !#-\[\]-~\u00A0-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF] | "\\" ["\\/nt]'
_MAX_CHARACTER_BYTES = 4  # in UTF-8; an escape takes two

_ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$comment"}  # which bound nothing
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "boolean": set[str](),
    "enum": {"enum"},
}
_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    **{"object": (dict,), "array": (list,), "string": (str,), "enum": (str,)},
    **{"integer": (int,), "number": (int, float), "boolean": (bool,)},
}


def to_gbnf(schema: Schema) -> str:
    """The GBNF grammar, with the start rule `root`, of the JSON that `schema` describes.

    All properties come in the order of the schema, with the spacing of `json.dumps`. Strings contain no control
    characters and only the escapes `\\" \\\\ \\/ \\n \\t`. Supported are object, array with `maxItems`, string with
    `maxLength`, enum of strings, boolean, and integer and number of a small range between integers. A number has
    three decimals at most.

    Raises ValueError, with the path in the schema, for anything unbounded or unsupported.
    Source: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
    """
    rules = {"char": _CHARACTER}
    rules["root"] = _expression(schema, "$", rules)
    return "".join(f"{name} ::= {expression}\n" for name, expression in rules.items())


def max_bytes(schema: Schema) -> int:
    """The length in UTF-8 bytes of the longest answer that `to_gbnf(schema)` accepts.

    Every token adds at least one byte, so this many tokens always suffice to complete an answer.
    """
    return _max_bytes(schema, "$")


def bounded(schema: Schema, max_length: int, max_items: int, path: str = "$") -> dict[str, Any]:
    """The schema with these bounds for texts and lists that have none, and with all properties required and no others.

    Raises ValueError, with the path in the schema, for what is not supported.
    """
    match kind_of(schema, path):
        case "string":
            return {"maxLength": max_length, **schema}
        case "array":
            return {
                "maxItems": max_items,
                **schema,
                "items": bounded(schema["items"], max_length, max_items, f"{path}.items"),
            }
        case "object":
            properties = {
                name: bounded(value, max_length, max_items, f"{path}.{name}")
                for name, value in schema["properties"].items()
            }
            return {**schema, "properties": properties, "required": [*properties], "additionalProperties": False}
        case _:
            return dict(schema)


def parse(answer: str, schema: Schema) -> Any:
    """Parse `answer` and validate it against `schema`.

    Raises ValueError, with the path in the answer, if it is not strict JSON or does not match the schema.
    """
    value = json.loads(answer)
    _check(value, schema, "$")
    return value


def _expression(schema: Schema, path: str, rules: dict[str, str]) -> str:
    """The right-hand side for one value. Lists add a rule of their own to `rules`."""
    match kind_of(schema, path):
        case "enum":
            return "(" + " | ".join(_literal(_dumps(value)) for value in schema["enum"]) + ")"
        case "string":
            min_length, max_length = _bounds(schema, "minLength", "maxLength", path)
            return f'"\\"" char{{{min_length},{max_length}}} "\\""'
        case "boolean":
            return '("true" | "false")'
        case "integer":
            return "(" + " | ".join(_literal(str(value)) for value in _integers(schema, path)) + ")"
        case "number":
            rules["fraction"] = f'("." [0-9]{{1,{DECIMALS}}})?'
            parts = [_literal(whole) + " fraction" * may_go_on for whole, may_go_on in _wholes(schema, path)]
            return "(" + " | ".join(parts) + ")"
        case "array":
            return _array(schema, path, rules)
        case _:
            return _object(schema, path, rules)


def _array(schema: Schema, path: str, rules: dict[str, str]) -> str:
    min_items, max_items = _bounds(schema, "minItems", "maxItems", path)
    item = _expression(schema["items"], f"{path}.items", rules)
    if max_items == 0:
        return '"[]"'
    # Named rules, because the limit on repetitions counts everything written inside a repeated group.
    number = len(rules)
    rules[f"item-{number}"] = item
    rules[f"list-{number}"] = f'item-{number} (", " item-{number}){{{max(min_items - 1, 0)},{max_items - 1}}}'
    return f'"[" list-{number}{"" if min_items else "?"} "]"'


def _object(schema: Schema, path: str, rules: dict[str, str]) -> str:
    parts = [
        _literal(f"{_dumps(name)}: ") + " " + _expression(value, f"{path}.{name}", rules)
        for name, value in schema["properties"].items()
    ]
    return " ".join(['"{"', ' ", " '.join(parts), '"}"'])


def _max_bytes(schema: Schema, path: str) -> int:
    match kind_of(schema, path):
        case "enum":
            return max(len(_dumps(value).encode()) for value in schema["enum"])
        case "string":
            return len('""') + _MAX_CHARACTER_BYTES * _bounds(schema, "minLength", "maxLength", path)[1]
        case "boolean":
            return len("false")
        case "integer":
            return max(len(str(value)) for value in _integers(schema, path))
        case "number":
            return max(len(whole) + may_go_on * (1 + DECIMALS) for whole, may_go_on in _wholes(schema, path))
        case "array":
            parts = [_max_bytes(schema["items"], f"{path}.items")] * _bounds(schema, "minItems", "maxItems", path)[1]
        case _:
            parts = [
                len(f"{_dumps(name)}: ".encode()) + _max_bytes(value, f"{path}.{name}")
                for name, value in schema["properties"].items()
            ]
    return len("[]") + sum(parts) + len(", ") * max(len(parts) - 1, 0)


def _check(value: Any, schema: Schema, path: str) -> None:
    """Raise ValueError unless `value` matches `schema`."""
    kind = kind_of(schema, path)
    if type(value) not in _PYTHON_TYPES[kind]:  # isinstance would take True for an integer
        raise ValueError(f"{path}: expected {kind}, got {type(value).__name__}")
    if kind == "enum" and value not in schema["enum"]:
        raise ValueError(f"{path}: {value!r} is not one of {schema['enum']}")
    if kind in ("integer", "number") and not (_integers(schema, path)[0] <= value <= _integers(schema, path)[-1]):
        raise ValueError(f"{path}: {value} is not between {schema['minimum']} and {schema['maximum']}")
    if kind == "string":
        _check_size(len(value), _bounds(schema, "minLength", "maxLength", path), "characters", path)
    if kind == "array":
        _check_size(len(value), _bounds(schema, "minItems", "maxItems", path), "items", path)
        for index, item in enumerate(value):
            _check(item, schema["items"], f"{path}[{index}]")
    if kind == "object":
        if list(value) != list(schema["properties"]):
            raise ValueError(f"{path}: expected the properties {list(schema['properties'])}, got {list(value)}")
        for name, item in value.items():
            _check(item, schema["properties"][name], f"{path}.{name}")


def _check_size(size: int, bounds: tuple[int, int], unit: str, path: str) -> None:
    if not bounds[0] <= size <= bounds[1]:
        raise ValueError(f"{path}: expected {bounds[0]} to {bounds[1]} {unit}, got {size}")


def kind_of(schema: Schema, path: str = "$") -> str:
    """`enum` or the type, after checking that every keyword of `schema` is supported."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"{path}: {schema!r} is not a schema: write {{type: string}}, for example")
    kind = "enum" if "enum" in schema else str(schema.get("type"))
    if kind not in _KEYWORDS:
        raise ValueError(f"{path}: the type {kind} is not supported; use one of {', '.join(_KEYWORDS)}")
    unsupported = set(map(str, schema)) - _KEYWORDS[kind] - _ANNOTATIONS - {"type"}
    if unsupported:
        raise ValueError(f"{path}: {', '.join(sorted(unsupported))} is not supported for {kind}")
    if kind == "enum":
        _require_strings(schema, path)
    if kind == "array" and "items" not in schema:
        raise ValueError(f"{path}: items is missing")
    if kind == "object":
        _require_closed(schema, path)
    return kind


def _require_strings(schema: Schema, path: str) -> None:
    values = schema["enum"]
    is_list = isinstance(values, list | tuple) and values
    if schema.get("type", "string") != "string" or not is_list or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{path}: enum needs strings, at least one, and nothing else")


def _require_closed(schema: Schema, path: str) -> None:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not all(isinstance(name, str) for name in properties):
        raise ValueError(f"{path}: an object needs properties, whose names are texts")
    required = schema.get("required", [*properties])
    if not isinstance(required, list | tuple) or {*map(str, required)} != {*properties}:
        raise ValueError(f"{path}: an object needs properties, all of them required: leave `required` out")
    if schema.get("additionalProperties", False) is not False:
        raise ValueError(f"{path}: additionalProperties makes the object unbounded")


def _bounds(schema: Schema, lower: str, upper: str, path: str) -> tuple[int, int]:
    if upper not in schema:
        raise ValueError(f"{path}: {upper} is missing, so it is unbounded")
    minimum, maximum = (_whole(value, path) for value in (schema.get(lower, 0), schema[upper]))
    if not 0 <= minimum <= maximum <= MAX_REPETITIONS:
        raise ValueError(f"{path}: {lower} {minimum} must be 0 to {upper} {maximum}, at most {MAX_REPETITIONS}")
    return minimum, maximum


def _integers(schema: Schema, path: str) -> range:
    if "minimum" not in schema or "maximum" not in schema:
        raise ValueError(f"{path}: minimum or maximum is missing, so it is unbounded")
    first, last = _whole(schema["minimum"], path), _whole(schema["maximum"], path)
    if not 1 <= last - first + 1 <= MAX_INTEGERS:
        number = max(0, last - first + 1)
        raise ValueError(f"{path}: minimum to maximum spans {number} values; 1 to {MAX_INTEGERS} are supported")
    return range(first, last + 1)


def _wholes(schema: Schema, path: str) -> list[tuple[str, bool]]:
    """What may stand before the point of a number, and whether decimals may follow: away from zero, up to a bound."""
    values = _integers(schema, path)
    upwards = [(str(value), value < values[-1]) for value in values if value >= 0]
    return upwards + [(f"-{-value}", value > values[0]) for value in values if value < 0 or value == 0 > values[0]]


def _whole(value: object, path: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{path}: the bound {value!r} is not an integer")
    return value


def _dumps(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _literal(text: str) -> str:
    """`text` as a GBNF literal. JSON has no raw control characters, so only two characters need escapes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
