"""Whether a field of the decoder's shape can have a value, whatever file it comes from."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from ..shape import DecoderShape
from .family import shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def checked(key: str, name: str, value: Any) -> Any:
    """`value` of config key `key`. Raises ValueError unless DecoderShape's field `name` can have it."""
    from pydantic import ValidationError

    try:
        return _types()[name].validate_python(value, strict=True)
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ValueError(f"{key} = {shown(value)}: must be {expected}") from None


@cache
def _types() -> dict[str, TypeAdapter[Any]]:
    from pydantic import TypeAdapter

    return {name: TypeAdapter(hint) for name, hint in get_type_hints(DecoderShape, include_extras=True).items()}
