"""What the API's OpenAPI document says of bodies and answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, TypeAdapter

ERRORS = {
    400: "The request isn't JSON, or didn't come whole", 401: "No key, or none that is valid",
    403: "The key has no scope for it", 404: "There is no such thing", 409: "It can't be so just now",
    412: "There is a newer version", 413: "The request is too large",
    416: "The recording has no such part", 422: "What is asked for can't be meant",
    429: "Too often; `Retry-After` says when again", 503: "It can't be had just now; `Retry-After` says when again",
}
ALWAYS = (401, 403, 422, 429, 503)  # whatever is asked


class Problem(BaseModel):
    """The one shape of errors."""

    error: str = Field(description="a code, for programs", examples=["not_found"])
    message: str = Field(description="a sentence, for people")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers of an endpoint that aren't its result: those that all have, and these."""
    return {status: {"model": Problem, "description": ERRORS[status]} for status in sorted({*ALWAYS, *statuses})}


def binary(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """Sound, whole or in part."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types}
    return {200: {"description": "All of it", "content": content},
            206: {"description": "The part that `Range` names", "content": content}}


def streams() -> dict[int | str, dict[str, Any]]:
    """Server-sent events."""
    return {200: {"description": "A stream without end",
                  "content": {"text/event-stream": {"schema": {"type": "string"}}}}}


def takes(kind: Any) -> dict[str, Any]:
    """What an endpoint's JSON body is, which it reads itself: bounded, before anything else is done."""
    schema = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _whole(schema, definitions)}}}}


def _whole(schema: Any, definitions: dict[str, Any]) -> Any:
    """With what it refers to in its place."""
    match schema:
        case {"$ref": str(name), **rest}:
            return _whole(definitions[name.rsplit("/", 1)[-1]] | rest, definitions)
        case dict():
            return {key: _whole(value, definitions) for key, value in schema.items()}
        case list():
            return [_whole(each, definitions) for each in schema]
        case _:
            return schema
