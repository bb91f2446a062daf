"""Just enough GraphQL: from a document's text to its operation and fragments."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOKEN = re.compile(
    r"(?P<skip>[\s,\ufeff]+|\#[^\n]*)"
    r"|(?P<block>\"\"\".*?\"\"\")|(?P<string>\"(?:\\.|[^\"\\])*\")"
    r"|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>[_A-Za-z]\w*)|(?P<mark>\.\.\.|[{}()\[\]:!=$@|&])",
    re.DOTALL,
)
CONSTANTS = {"true": True, "false": False, "null": None}


class GraphQLError(Exception):
    """What the server answers in `errors`, with HTTP status 200."""


@dataclass(frozen=True)
class Variable:
    name: str


@dataclass(frozen=True)
class Selected:
    """A field (`name`), a spread of a fragment (`fragment`) or an inline fragment (neither)."""

    name: str = ""
    key: str = ""
    fragment: str = ""
    condition: str = ""
    arguments: Mapping[str, Any] | None = None
    directives: Mapping[str, Mapping[str, Any]] | None = None
    fields: "tuple[Selected, ...]" = ()


@dataclass(frozen=True)
class Document:
    """One operation and the fragments that it uses."""

    kind: str
    name: str
    defaults: Mapping[str, Any]
    fields: tuple[Selected, ...]
    fragments: Mapping[str, Selected]


def parse(text: str) -> Document:
    """The first operation of `text`; raises GraphQLError where the text is not GraphQL."""
    parser = _Parser(text)
    operation: tuple[str, str, dict[str, Any], tuple[Selected, ...]] | None = None
    fragments: dict[str, Selected] = {}
    while parser.peek():
        if parser.peek() == "fragment":
            parser.take()
            name = parser.take()
            parser.expect("on")
            condition = parser.take()
            fragments[name] = Selected(condition=condition, fields=parser.fields())
        else:
            operation = operation or parser.operation()
    if operation is None:
        raise GraphQLError("the document holds no operation")
    return Document(*operation, fragments)


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        position = 0
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None:
                raise GraphQLError(f"cannot read {text[position : position + 20]!r}")
            if match.lastgroup != "skip":
                self.tokens.append(match.group())
            position = match.end()
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise GraphQLError("the document ends too early")
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if (found := self.take()) != token:
            raise GraphQLError(f"expected {token!r}, found {found!r}")

    def skip(self, token: str) -> bool:
        found = self.peek() == token
        self.at += found
        return found

    def operation(self) -> tuple[str, str, dict[str, Any], tuple[Selected, ...]]:
        kind, name = "query", ""
        defaults: dict[str, Any] = {}
        if self.peek() != "{":
            kind = self.take()
            name = self.take() if self.peek() not in "({@" else ""
            if self.skip("("):
                while not self.skip(")"):
                    self.variable(defaults)
        self.directives()
        return kind, name, defaults, self.fields()

    def variable(self, defaults: dict[str, Any]) -> None:
        self.expect("$")
        name = self.take()
        self.expect(":")
        while self.peek() in ("[", "]", "!") or self.peek() not in ("=", "$", ")"):
            self.take()
        if self.skip("="):
            defaults[name] = self.value()

    def fields(self) -> tuple[Selected, ...]:
        self.expect("{")
        fields = []
        while not self.skip("}"):
            fields.append(self.spread() if self.skip("...") else self.field())
        return tuple(fields)

    def spread(self) -> Selected:
        if self.peek() in ("on", "{", "@"):
            condition = self.take() if self.skip("on") else ""
            return Selected(condition=condition, directives=self.directives(), fields=self.fields())
        return Selected(fragment=self.take(), directives=self.directives())

    def field(self) -> Selected:
        key = name = self.take()
        if self.skip(":"):
            name = self.take()
        arguments = self.arguments()
        directives = self.directives()
        return Selected(name, key, "", "", arguments, directives, self.fields() if self.peek() == "{" else ())

    def arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self.skip("("):
            while not self.skip(")"):
                name = self.take()
                self.expect(":")
                arguments[name] = self.value()
        return arguments

    def directives(self) -> dict[str, Mapping[str, Any]]:
        directives: dict[str, Mapping[str, Any]] = {}
        while self.skip("@"):
            name = self.take()
            directives[name] = self.arguments()
        return directives

    def value(self) -> Any:
        token = self.take()
        if token == "$":
            return Variable(self.take())
        if token == "[":
            parts = []
            while not self.skip("]"):
                parts.append(self.value())
            return parts
        if token == "{":
            self.at -= 1
            return self.members()
        if token.startswith('"'):
            return token[3:-3] if token.startswith('"""') else str(_unescaped(token[1:-1]))
        if token[0] in "-0123456789":
            return float(token) if set(".eE") & set(token) else int(token)
        return CONSTANTS.get(token, token)

    def members(self) -> dict[str, Any]:
        self.expect("{")
        members: dict[str, Any] = {}
        while not self.skip("}"):
            name = self.take()
            self.expect(":")
            members[name] = self.value()
        return members


def _unescaped(text: str) -> str:
    plain = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
    return re.sub(
        r"\\(u[0-9a-fA-F]{4}|.)",
        lambda m: chr(int(m[1][1:], 16)) if len(m[1]) == 5 else plain.get(m[1], m[1]),
        text,
    )
