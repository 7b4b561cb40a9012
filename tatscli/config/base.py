"""What every config shares."""

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
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
        choices: Published values and ours, where they differ.
    """

    name: str
    value: Any = UNSET
    choices: Mapping[str, Any] | None = None

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

    Sections are given as ``Field(default_factory=...)``: as long as no config is made on import,
    pydantic builds no validators, and the help of a command answers sooner.

    Attributes:
        ALTERNATIVES: Groups of fields of which at most one may be given in one place; the one
            given in a stronger place (options over file over preset) displaces the others.
        OBSOLETE: Published options that no longer mean anything, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    ALTERNATIVES: ClassVar[tuple[tuple[str, ...], ...]] = ()
    OBSOLETE: ClassVar[dict[str, Obsolete]] = {}

    @classmethod
    def help_texts(cls) -> dict[str, str]:
        """The docstrings under the fields, by field, inherited ones included."""
        texts: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            if issubclass(base, Config):
                texts |= _field_docstrings(base.__module__).get(base.__name__, {})
        return texts


@cache
def _field_docstrings(module: str) -> dict[str, dict[str, str]]:
    """Docstrings under the annotated names of each class of a module.

    Pydantic's ``use_attribute_docstrings`` finds the same, but tokenises the source once a class,
    for which the help of a command would have to wait.
    """
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        node.name: {
            first.target.id: inspect.cleandoc(then.value.value)
            for first, then in pairwise(node.body)
            if isinstance(first, ast.AnnAssign)
            and isinstance(first.target, ast.Name)
            and isinstance(then, ast.Expr)
            and isinstance(then.value, ast.Constant)
            and isinstance(then.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
