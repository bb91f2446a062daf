"""The GraphQL that the SDK speaks, parsed and answered without a schema."""

from typing import Any

import pytest

from tests.wandb_server.graphql import execute
from tests.wandb_server.graphql_parse import GraphQLError, parse


def test_a_query_is_answered_with_the_fields_that_it_asks_for() -> None:
    text = """
    # a comment
    query Q($name: String!, $more: Boolean = false, $n: [Int!] = [1, 2]) {
      one: thing(name: $name, n: $n, unset: $unset, nested: {a: "x\\n", b: [TRUE, true]}) { id ...F ... on Other { no } }
      two @include(if: $more) { id }
      }
    fragment F on Thing { items @skip(if: $more) { edges { node { value } } } }
    """
    asked: dict[str, Any] = {}

    def thing(arguments: Any) -> dict[str, Any]:
        asked.update(arguments)
        return {"__typename": "Run", "id": 7, "items": {"edges": [{"node": {"value": 1, "hidden": 2}}]}, "hidden": 3}

    answer = execute(parse(text), {"name": "x"}, {"thing": thing, "two": {"id": 1}})
    assert answer == {"one": {"id": 7, "items": {"edges": [{"node": {"value": 1}}]}, "no": None}}
    assert asked == {"name": "x", "n": [1, 2], "nested": {"a": "x\n", "b": ["TRUE", True]}}
    with pytest.raises(GraphQLError, match="ends too early"):
        parse("query { a ")
    with pytest.raises(GraphQLError, match="no query missing"):
        execute(parse("{ missing }"), {}, {})
