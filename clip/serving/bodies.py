"""What clients send: the keys of each route's body, read from JSON or from a form with a file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from clip.serving.limits import MOST_LABELS, MOST_MATCHES
from clip.serving.refusals import Refusal

Body = TypeVar("Body", bound=BaseModel)
Picture = str | bytes
"""A data: URI, base64 or an address; or the bytes of an uploaded file."""

_SHOWN = 80  # characters of a key that a client has made up


def _inputs(value: object) -> list[str]:
    """The inputs of a request, from one or a list of them."""
    inputs = [value] if isinstance(value, str) else value
    if not isinstance(inputs, list) or not inputs:
        raise PydanticCustomError("inputs", "give a text or a list of at least one text")
    for place, each in enumerate(inputs):
        if isinstance(each, (int, list)):
            raise PydanticCustomError(
                "inputs", "it holds tokens, whose numbers depend on the tokenizer; send texts, which are tokenized here"
            )
        if not isinstance(each, str):
            raise PydanticCustomError("inputs", f"input {place} is not a text")
    return inputs


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EmbeddingsBody(_Body):
    """Of ``/v1/embeddings``: OpenAI's keys, infinity's ``modality``, and whether embeddings get length 1."""

    input: Annotated[str | list[str], BeforeValidator(_inputs)]
    model: str
    modality: Literal["text", "image"] = "text"
    normalize: bool = True
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class ClassifyBody(_Body):
    """Of ``/classify``."""

    image: Picture
    labels: list[str] = Field(min_length=1, max_length=MOST_LABELS)
    template: str | None = None


class SearchBody(_Body):
    """Of ``/search``: a text, a picture or both."""

    text: str | None = None
    image: Picture | None = None
    top: int = Field(20, ge=1, le=MOST_MATCHES, strict=False)  # in a form it is a text


async def read(request: Request, kind: type[Body]) -> Body:
    """The body of a request, which is JSON, or a form whose lists are fields of the same name.

    Raises:
        Refusal: it is neither, a key is unknown or missing, or has another kind of value.
    """
    try:
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return kind.model_validate(await _form(request, kind))
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_input=False)[0], kind) from error


async def _form(request: Request, kind: type[BaseModel]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # `Request.form` would take a form for nothing if its Content-Type has capitals.
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=MOST_LABELS + 2)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(400, f"The form cannot be read: {error.message.rstrip('.')}.") from error
    try:
        for name in form:
            values = [await each.read() if isinstance(each, UploadFile) else each for each in form.getlist(name)]
            field = kind.model_fields.get(name)
            is_list = field is not None and get_origin(field.annotation) is list
            found[name] = values if is_list or len(values) > 1 else values[0]
        return found
    finally:
        await form.close()


def _refusal(fault: Any, kind: type[BaseModel]) -> Refusal:
    """The first fault that pydantic has found in a body, as one sentence."""
    message = fault["msg"].rstrip(".")
    message = message[0].lower() + message[1:]
    if not fault["loc"]:
        keys = ", ".join(kind.model_fields)
        what = message if fault["type"] == "json_invalid" else "it is another value"
        return Refusal(400, f"The body is not a JSON object with the keys {keys}: {what}.")
    name = str(fault["loc"][0])[:_SHOWN]
    if fault["type"] == "missing":
        return Refusal(400, f"The body has no {name!r}.", name)
    if fault["type"] == "extra_forbidden":
        return Refusal(400, f"There is no key {name!r}; the keys are {', '.join(kind.model_fields)}.", name)
    return Refusal(400, f"{name!r} cannot be used: {message}.", name)


def documented(kind: type[BaseModel], form: bool = False) -> dict[str, Any]:
    """What OpenAPI says of a route's body."""
    schema = {"schema": kind.model_json_schema()}
    contents = {"application/json": schema} | ({"multipart/form-data": schema} if form else {})
    return {"requestBody": {"required": True, "content": contents}}
