"""What /openapi.json says of answers: the columns of rows, ids, and errors, which all look alike."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Path
from pydantic import Field

from vec_pipeline.commands.serve.uploads import ID_BYTES

Responses = dict[int | str, dict[str, Any]]

ID = {"type": "string", "pattern": f"^[0-9a-f]{{{2 * ID_BYTES}}}$"}
PATTERN = {"pattern": ID["pattern"]}  # not for FastAPI to check: what has another form is not found
Id = Annotated[str, Field(json_schema_extra=PATTERN)]
Name = Annotated[str, Path(description="the id of an annotation", json_schema_extra=PATTERN)]
OF_TYPES: dict[str, dict[str, Any]] = {  # of columns -> what a row has there
    "text": {"type": "string"},
    "file": {"type": "string"},
    "number": {"type": ["number", "null"]},
    "vector": {"type": ["array", "null"], "items": {}},
    "json": {},
}
ERROR = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
WAITING = {
    "type": "object",
    "properties": {"id": ID, "status": {"enum": ["waiting", "running"]}},
    "required": ["id", "status"],
}

EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["waiting", "done", "error"]},
        "data": {"type": "string", "description": "JSON: how many are before it, the row, or what went wrong"},
    },
    "required": ["event", "data"],
}


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def json_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def list_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


NOT_DONE = {"description": "not done yet", "content": json_of(ref("Waiting"))}
UNKNOWN = {"description": "there is no such annotation"}
ROW: Responses = {
    200: {"description": "the row", "content": json_of(ref("Row"))},
    202: NOT_DONE,
    404: UNKNOWN,
    503: {"description": "it was lost: the server was ending, say"},
}
HISTORY: Responses = {404: UNKNOWN, 503: {"description": "the rows cannot be read"}}
ROWS: Responses = {
    200: {
        "description": "the row, or a list of them where several pictures were sent",
        "content": json_of({"anyOf": [ref("Row"), list_of(ref("Row"))]}),
        "headers": {"Location": {"description": "where the first is", "schema": {"type": "string"}}},
    },
    202: {
        "description": "not all are done yet: ids to ask for",
        "content": json_of({"anyOf": [ref("Waiting"), list_of({"anyOf": [ref("Row"), ref("Waiting")]})]}),
        "headers": {"Location": {"description": "where the first will be", "schema": {"type": "string"}}},
    },
    415: {"description": "no picture of a known format"},
    422: {"description": "what this server does not have, or an address that cannot be fetched"},
    429: {
        "description": "too many wait: come again after Retry-After seconds",
        "headers": {"Retry-After": {"schema": {"type": "integer"}}},
    },
    507: {"description": "no room on the disk"},
}
EVENTS: Responses = {
    200: {
        "description": "events until the row is there",
        "content": {"text/event-stream": {"schema": EVENT}},
    },
    404: UNKNOWN,
    503: ROW[503],
}
PICTURES: Responses = {
    200: {
        "description": "the picture",
        "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "Picture-Size": {
                "description": "width x height of the file, upright, in pixels",
                "schema": {"type": "string", "pattern": r"^\d+x\d+$"},
            }
        },
    },
    404: UNKNOWN,
    422: {"description": "it cannot be opened"},
}
FILES: Responses = {
    200: {
        "description": "the file",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("audio/*", "image/*")},
    },
    404: {"description": "there is no such annotation, or no such file of it"},
    503: ROW[503],
}
FIGURES: Responses = {200: {"description": "figures", "content": {"text/plain": {"schema": {"type": "string"}}}}}
HEALTH = {
    "type": "object",
    "properties": {"status": {"enum": ["ok", "failed"]}, "waiting": {"type": "integer"}},
    "required": ["status", "waiting"],
}
STATES: Responses = {
    200: {"description": "it works", "content": json_of(HEALTH)},
    503: {"description": "nothing can be annotated any more", "content": json_of(HEALTH)},
}
OF_ALL: Responses = {
    401: {"description": "a token is needed: Authorization: Bearer TOKEN"},
    403: {"description": "the request comes from a page of another origin"},
    421: {"description": "the server is not known by this name"},
}
OF_UPLOADS: Responses = {
    400: {"description": "the form cannot be read"},
    408: {"description": "the request took too long"},
    413: {"description": "the request is too large"},
    503: {"description": "the server is ending, or has failed"},
}


def schema_of_row(types: Mapping[str, str]) -> dict[str, Any]:
    """Of a row as JSON. types: of its columns, by name and in their order."""
    properties = {name: OF_TYPES[kind] for name, kind in types.items()}
    return {"type": "object", "properties": properties, "required": list(types), "additionalProperties": False}


def describe(app: FastAPI, types: Mapping[str, str]) -> None:
    """Make the description of an application whose routes are complete, with what all of them have in common."""
    found = app.openapi()  # which FastAPI keeps
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, in place of which there is Error
        schemas.pop(name, None)
    schemas |= {"Row": schema_of_row(types), "Waiting": WAITING, "Error": ERROR}
    for methods in found["paths"].values():
        for method, operation in methods.items():
            of_method = OF_UPLOADS if method == "post" else {}
            for status, response in {**OF_ALL, **of_method}.items():
                operation["responses"].setdefault(str(status), dict(response))
            for status, response in operation["responses"].items():
                if status == "422" or (status >= "400" and "content" not in response):
                    response["content"] = json_of(ref("Error"))
