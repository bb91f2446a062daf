"""What happens to a version later: aliases, metadata, links, uses, deletion."""

from tests.wandb_server.artifact_changes import known_artifact, move_alias
from tests.wandb_server.artifact_nodes import artifact_node, membership_node, memberships
from tests.wandb_server.graphql_parse import GraphQLError
from tests.wandb_server.nodes import Arguments, Context, Node, ensure_project
from tests.wandb_server.records import Artifact, Collection, Membership, Run, Use
from tests.wandb_server.run_nodes import run_key
from tests.wandb_server.store import Store


def add_aliases(ctx: Context, arguments: Arguments) -> Node:
    given = arguments["input"]
    artifact = known_artifact(ctx.store, given["artifactID"])
    for part in given["aliases"]:
        key = f"{part['entityName']}/{part['projectName']}/{part['artifactCollectionName']}"
        move_alias(ctx.store, key, artifact, part["alias"])
    return {"success": True}


def delete_aliases(ctx: Context, arguments: Arguments) -> Node:
    given = arguments["input"]
    artifact = known_artifact(ctx.store, given["artifactID"])
    for part in given["aliases"]:
        key = f"{part['entityName']}/{part['projectName']}/{part['artifactCollectionName']}"
        for member in memberships(ctx.store, key):
            if member.artifact == artifact.key:
                member.aliases = [name for name in member.aliases if name != part["alias"]]
                ctx.store.put(member)
    return {"success": True}


def update_artifact(ctx: Context, arguments: Arguments) -> Node:
    """What is not given, or null, stays."""
    given = arguments["input"]
    artifact = known_artifact(ctx.store, given["artifactID"])
    for name, attribute in {"metadata": "metadata", "description": "description", "ttlDurationSeconds": "ttl_s"}.items():
        if given.get(name) is not None:
            setattr(artifact, attribute, given[name])
    gone = {tag["tagName"] for tag in given.get("tagsToDelete") or []}
    added = [tag["tagName"] for tag in given.get("tagsToAdd") or [] if tag["tagName"] not in artifact.tags]
    artifact.tags = [name for name in artifact.tags if name not in gone] + added
    return {"artifact": artifact_node(ctx, ctx.store.put(artifact))}


def delete_artifact(ctx: Context, arguments: Arguments) -> Node:
    """Refused while the version has aliases, unless they are to go too; its contents are not collected."""
    given = arguments["input"]
    artifact = known_artifact(ctx.store, given["artifactID"])
    aliases = [name for member in _of(ctx.store, artifact) for name in member.aliases]
    if aliases and not given.get("deleteAliases"):
        raise GraphQLError(f"cannot delete an artifact with aliases {aliases}")
    forget_artifact(ctx.store, artifact)
    return {"artifact": {"id": artifact.id}}


def forget_artifact(store: Store, artifact: Artifact) -> None:
    for member in _of(store, artifact):
        store.delete(member)
    artifact.state = "DELETED"
    store.put(artifact)


def link_artifact(ctx: Context, arguments: Arguments) -> Node:
    """The version joins a portfolio, which is made if missing; linking again only adds aliases."""
    given, store = arguments["input"], ctx.store
    artifact = _linked(store, arguments)
    entity, project, name = given["entityName"], given["projectName"], given["artifactPortfolioName"]
    ensure_project(store, entity, project)
    home = store.get(Collection, artifact.collection)
    assert home is not None
    key = f"{entity}/{project}/{name}"
    target = store.get(Collection, key) or store.put(
        Collection(key=key, entity=entity, project=project, name=name, type=home.type, kind="ArtifactPortfolio")
    )
    member = next((m for m in memberships(store, key) if m.artifact == artifact.key), None)
    if member is None:
        member_key = f"{key}:v{target.next_version}"
        member = store.put(Membership(key=member_key, collection=key, artifact=artifact.key, version=target.next_version))
        target.next_version += 1
        store.put(target)
    for alias in [*(part["alias"] for part in given.get("aliases") or []), "latest"]:
        move_alias(store, key, artifact, alias)
    fresh = store.get(Membership, member.key)
    assert fresh is not None
    return {"versionIndex": fresh.version, "artifactMembership": membership_node(ctx, fresh)}


def unlink_artifact(ctx: Context, arguments: Arguments) -> Node:
    given = arguments["input"]
    artifact = known_artifact(ctx.store, given["artifactID"])
    target = ctx.store.by_id(Collection, given["artifactPortfolioID"])
    for member in _of(ctx.store, artifact):
        if target and member.collection == target.key:
            ctx.store.delete(member)
    return {"success": True}


def use_artifact(ctx: Context, arguments: Arguments) -> Node:
    given = arguments["input"]
    artifact = known_artifact(ctx.store, given["artifactID"])
    run = run_key(given["entityName"], given["projectName"], given["runName"])
    if ctx.store.get(Run, run) is None:
        raise GraphQLError(f"run {run} not found")
    ctx.store.put(Use(key=f"{artifact.key}/{run}", artifact=artifact.key, run=run, used_as=given.get("usedAs")))
    return {"artifact": artifact_node(ctx, artifact)}


def _of(store: Store, artifact: Artifact) -> list[Membership]:
    return [member for member in store.all(Membership) if member.artifact == artifact.key]


def _linked(store: Store, arguments: Arguments) -> Artifact:
    given = arguments["input"]
    if given.get("artifactID"):
        return known_artifact(store, given["artifactID"])
    found = [a for a in store.all(Artifact) if a.client_id == given.get("clientID") and a.state != "DELETED"]
    if not found:
        raise GraphQLError(f"no artifact with client id {given.get('clientID')}")
    return found[-1]
