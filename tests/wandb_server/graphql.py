"""Answer exactly the fields that a GraphQL document asks for.

There is no schema. A node is a mapping from field name to a value, or to a function of the field's arguments; a field that
the node does not have is answered with null.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.wandb_server.graphql_parse import Document, GraphQLError, Selected, Variable

ALTERNATIVES = ({"ArtifactSequence", "ArtifactPortfolio"}, {"Run", "User"})


def execute(document: Document, variables: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to `document`, shaped by its selection, from the node `root`, which must have all that is asked of it."""
    unknown = sorted({field.name for field in document.fields} - {"", *root})
    if unknown:
        raise GraphQLError(f"this server has no {document.kind} {', '.join(unknown)}")
    given = {**document.defaults, **variables}
    answer: dict[str, Any] = _project(root, document.fields, _Scope(document, given))
    return answer


@dataclass(frozen=True)
class _Scope:
    document: Document
    variables: Mapping[str, Any]

    def value(self, given: Any) -> Any:
        if isinstance(given, Variable):
            return self.variables.get(given.name)
        if isinstance(given, dict):
            return {key: self.value(part) for key, part in given.items() if not self.missing(part)}
        return [self.value(part) for part in given] if isinstance(given, list) else given

    def missing(self, given: Any) -> bool:
        return isinstance(given, Variable) and given.name not in self.variables

    def wanted(self, selected: Selected) -> bool:
        directives = selected.directives or {}
        include = self.value(directives.get("include", {}).get("if", True))
        return bool(include) and not self.value(directives.get("skip", {}).get("if", False))


def _project(value: Any, fields: tuple[Selected, ...], scope: _Scope) -> Any:
    if isinstance(value, list | tuple):
        return [_project(part, fields, scope) for part in value]
    if value is None or not fields:
        return value
    answer: dict[str, Any] = {}
    for field in _flat(value, fields, scope):
        found = value.get(field.name)
        if callable(found):
            found = found(scope.value(dict(field.arguments or {})))
        projected = _project(found, field.fields, scope)
        before = answer.get(field.key)
        if isinstance(before, dict) and isinstance(projected, dict):
            projected = {**before, **projected}
        answer[field.key] = projected
    return answer


def _flat(node: Mapping[str, Any], fields: tuple[Selected, ...], scope: _Scope) -> Iterator[Selected]:
    for selected in fields:
        if not scope.wanted(selected):
            continue
        if selected.name:
            yield selected
            continue
        part = scope.document.fragments[selected.fragment] if selected.fragment else selected
        if not _excluded(str(node.get("__typename", "")), part.condition):
            yield from _flat(node, part.fields, scope)


def _excluded(typename: str, condition: str) -> bool:
    return typename != condition and any({typename, condition} <= kinds for kinds in ALTERNATIVES)
