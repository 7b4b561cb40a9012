"""What every config shares."""

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

FILE_ONLY = "file only"
"""Marks a field that only a config file can set."""

UNSET: Any = object()
"""The value of an option that was not given."""


@dataclass(frozen=True)
class Published:
    """An option of the published code that sets this field; accepted, hidden from help.

    Attributes:
        name: The published name, without dashes in front.
        value: For a flag without value, what it sets the field to.
    """

    name: str
    value: Any = UNSET

    @property
    def is_flag(self) -> bool:
        """Whether the option stands alone."""
        return self.value is not UNSET


@dataclass(frozen=True)
class Obsolete:
    """A published option that no longer means anything: taken, with a note.

    Attributes:
        note: Why it has no effect, one line.
        is_flag: Whether the option stands alone rather than with a value.
    """

    note: str
    is_flag: bool = True


class Config(BaseModel):
    """Immutable settings; unknown keys are errors; attribute docstrings are the help texts.

    Attributes:
        ALTERNATIVES: Groups of fields of which at most one may be given in one place; the one
            given in a stronger place (options over file over preset) displaces the others.
        OBSOLETE: Published options that no longer mean anything, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ALTERNATIVES: ClassVar[tuple[tuple[str, ...], ...]] = ()
    OBSOLETE: ClassVar[dict[str, Obsolete]] = {}
