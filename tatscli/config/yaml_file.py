"""Reading of YAML; a module of its own, since neither help nor completion needs the parser."""

from typing import Any

from yaml import MappingNode, MarkedYAMLError, SafeLoader, ScalarNode, load


class _Loader(SafeLoader):
    """Takes no key twice in a mapping, of which others silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """A mapping as it is written, before what it refers to is merged into it."""
        node = super().compose_mapping_node(anchor)
        marks: dict[tuple[str, str], Any] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            name, here = (key.tag, key.value), key.start_mark
            if name in marks:
                raise MarkedYAMLError(
                    problem=f"{key.value} is given twice, first in line {marks[name].line + 1}",
                    problem_mark=here,
                )
            marks[name] = here
        return node


def read_yaml(text: str) -> Any:
    """What a text holds.

    Raises:
        YAMLError: It is no YAML, or has a key twice.
    """
    return load(text, Loader=_Loader)
