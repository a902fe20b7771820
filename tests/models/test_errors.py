"""The tree of errors: words and codes that clients rely on."""

from __future__ import annotations

from collections.abc import Iterator

from models.errors import DomainError, NotFound, Unauthorized


def tree(root: type[DomainError]) -> Iterator[type[DomainError]]:
    yield root
    for below in root.__subclasses__():
        yield from tree(below)


def test_the_docstring_is_the_default_sentence() -> None:
    assert NotFound().message == "No such object."
    assert str(Unauthorized("No.", param="key")) == "No."
    assert Unauthorized("No.", param="key").param == "key"


def test_every_error_has_a_sentence_a_status_and_a_code() -> None:
    for error in tree(DomainError):
        assert (error.__doc__ or "").strip().endswith((".", "`."))
        assert 400 <= error.status_code < 600
        assert error.code.replace("_", "").isalpha()
        assert error.code == error.code.lower()
