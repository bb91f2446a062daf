"""What the GraphQL answers share: the context they are made in, connections (pages), filters and orders."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from tests.wandb_server.records import Project
from tests.wandb_server.store import Store

Node = dict[str, Any]
Arguments = Mapping[str, Any]
Getter = Callable[[str], Any]
DEFAULT_PAGE = 50


@dataclass(frozen=True)
class Context:
    """`base_url` is how the client that asks reaches this server."""

    store: Store
    base_url: str

    def url(self, blob: str, **marks: str) -> str:
        """A URL for the content `blob` that needs no credentials; the marks only show up in the request log."""
        return f"{self.base_url}/storage/{quote(blob)}?{urlencode({'signature': 'given', **marks})}"


def project_key(entity: str, project: str) -> str:
    return f"{entity}/{project}"


def ensure_project(store: Store, entity: str, name: str) -> Project:
    key = project_key(entity, name)
    return store.get(Project, key) or store.put(Project(key=key, entity=entity, name=name))


def project_info(store: Store, entity: str, name: str) -> Node:
    project = ensure_project(store, entity, name)
    owner = {"id": base64.b64encode(f"Entity:{entity}".encode()).decode(), "name": entity}
    return {
        "__typename": "Project",
        "id": project.id,
        "internalId": base64.b64encode(f"ProjectInternalId:{project.number}".encode()).decode(),
        "name": name,
        "entityName": entity,
        "entity": {"__typename": "Entity", **owner},
        "createdAt": project.created_at,
        "isBenchmark": False,
        "readOnly": False,
    }


def connection(nodes: Sequence[Node], arguments: Arguments) -> Node:
    """The page of `nodes` after the cursor; each node has an `id`, and a page goes on after the one that was last.

    A `version` of a node is repeated on its edge, where W&B has it for artifacts.
    """
    size = int(arguments.get("first") or DEFAULT_PAGE)
    start = 0
    if after := arguments.get("after"):
        position, last = base64.b64decode(after).decode().split("|", 1)
        places = [place for place, node in enumerate(nodes) if node["id"] == last]
        start = (places[0] if places else int(position)) + 1
    page = nodes[start : start + size]
    cursors = [base64.b64encode(f"{start + n}|{node['id']}".encode()).decode() for n, node in enumerate(page)]
    info = {"endCursor": cursors[-1] if cursors else None, "hasNextPage": start + size < len(nodes)}
    return {
        "totalCount": len(nodes),
        "pageInfo": {"__typename": "PageInfo", **info},
        "edges": [{"node": n, "cursor": c, "version": n.get("version")} for n, c in zip(page, cursors, strict=True)],
    }


def matches(wanted: Mapping[str, Any], get: Getter) -> bool:
    """Whether a MongoDB filter holds for the fields that `get` reads."""
    for key, condition in wanted.items():
        if key in ("$and", "$or"):
            if not (all if key == "$and" else any)(matches(part, get) for part in condition):
                return False
        elif key == "$not":
            if matches(condition, get):
                return False
        elif not _holds(get(key), condition):
            return False
    return True


def _holds(value: Any, condition: Any) -> bool:
    if not (isinstance(condition, Mapping) and any(key.startswith("$") for key in condition)):
        return bool(condition in value if isinstance(value, list) else value == condition)
    return all(_operator(name, value, operand) for name, operand in condition.items())


def _operator(name: str, value: Any, operand: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    checks: dict[str, Callable[[], bool]] = {
        "$eq": lambda: operand in values,
        "$ne": lambda: operand not in values,
        "$in": lambda: any(v in operand for v in values),
        "$nin": lambda: all(v not in operand for v in values),
        "$exists": lambda: (value is not None) == bool(operand),
        "$regex": lambda: any(re.search(operand, str(v)) for v in values if v is not None),
        "$contains": lambda: any(operand in str(v) for v in values),
        "$gt": lambda: value is not None and value > operand,
        "$gte": lambda: value is not None and value >= operand,
        "$lt": lambda: value is not None and value < operand,
        "$lte": lambda: value is not None and value <= operand,
        "$not": lambda: not _holds(value, operand),
    }
    return checks[name]()


def ordered(items: Sequence[Any], order: str, get: Callable[[Any], Getter]) -> list[Any]:
    """`items` by W&B's order text (`-created_at`); values that are missing come last, equal ones stay as they are."""
    name, falling = order.lstrip("+-"), order.startswith("-")
    values = [(get(item)(name), item) for item in items]
    present = sorted((pair for pair in values if pair[0] is not None), key=lambda pair: pair[0], reverse=falling)
    return [item for _, item in present] + [item for value, item in values if value is None]
