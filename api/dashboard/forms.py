"""What a form sends, read by the same schema that the API reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from models.errors import DomainError

Body = TypeVar("Body", bound=BaseModel)


class InvalidForm(DomainError):
    """The form has a field that cannot be taken."""

    code = "invalid_form"


def read_form(schema: type[Body], values: Mapping[str, object]) -> Body:
    """Make a request's body from a form's fields; what was left empty is left out.

    Raises:
        InvalidForm: a field is not as it must be; the message names it.
    """
    given = {name: value for name, value in values.items() if value not in ("", None, [], {})}
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        # The input itself is not repeated: a field may hold what is nobody's to read.
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'form'}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)[:5]
        )
        raise InvalidForm(f"The form cannot be taken. {faults}.") from error
