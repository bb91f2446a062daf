"""The whole of it: collect, train, encode, tabulate."""

import argparse
import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.errors import SetupError
from dr_validate.files import sha256_of_file, write_atomically
from scripts.research.series.docstrings import Collection, collect, draw, write_beir, write_coll_json
from scripts.research.series.encode import Everything, write_run, write_vectors
from scripts.research.series.train import Recipe, Saved, train

log = logging.getLogger(__name__)

RUN_DEPTH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Of the table: `name` is that of the vectors; a model that was not trained here has neither step nor loss."""

    name: str
    step: int | None
    loss: float | None
    mrr_at_10: float


def make(options: argparse.Namespace) -> str:
    """The table, when everything is written. Raises DrValidateError for what cannot be used."""
    _check(options)
    collection = _collection(options)
    recipe = _recipe(options)
    everything = Everything(collection, _encoder(options))
    rows = []
    for number, saved in enumerate(train(recipe, collection, options.out / "checkpoints")):
        rows.append(_measured(options, everything, saved, f"c{number:02d}"))
    if options.strong:
        rows.append(_measured(options, everything, _strong(options, recipe, collection), "strong"))
    _write_manifest(options, rows)
    return _table(rows)


def _check(options: argparse.Namespace) -> None:
    if options.out.exists() and any(options.out.iterdir()):
        raise SetupError(f"--out: {options.out} is not empty; name another folder, or remove it")
    if not (options.base / "config.json").is_file():
        raise SetupError(f"--base: {options.base} has no config.json; name a folder that a model was saved in")


def _collection(options: argparse.Namespace) -> Collection:
    found = collect(options.packages, options.signatures)
    collection = draw(found, options.documents, options.queries, options.draw_seed)
    counts = [len(part) for part in (collection.documents, collection.test, collection.training)]
    log.info("%d documents, %d test queries, %d pairs to train on", *counts)
    write_beir(collection, options.out / "beir")
    if options.vectors:
        write_coll_json(collection, options.vectors / "coll.json")
    return collection


def _recipe(options: argparse.Namespace) -> Recipe:
    return Recipe(
        kind=options.model,
        base=options.base,
        steps=options.steps,
        noise=options.noise,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        warmup_steps=options.warmup_steps,
        lengths=(options.query_length, options.document_length),
        seed=options.seed,
    )


def _encoder(options: argparse.Namespace) -> AutoEncoder:
    """As the checkpoints say themselves; stated for the base, which may be a plain folder, or say something else."""
    return AutoEncoder(
        pooling="mean",
        normalize=True,
        query_max_length=options.query_length,
        document_max_length=options.document_length,
        dtype=options.dtype,
    )


def _strong(options: argparse.Namespace, recipe: Recipe, collection: Collection) -> Saved:
    """Another model than the checkpoints: the base before the noise; where the base is no rival (its token embeddings were not
    trained to be averaged), the last checkpoint of the next seed."""
    if recipe.kind == "minilm3":
        return Saved(step=None, folder=options.base, loss=None)
    again = dataclasses.replace(recipe, seed=recipe.seed + 1, steps=recipe.steps[-1:])
    (last,) = train(again, collection, options.out / "strong")
    return last


def _measured(options: argparse.Namespace, everything: Everything, saved: Saved, name: str) -> Row:
    """Encode a checkpoint over the whole collection, and write down what was asked for."""
    vectors = everything.encode(saved.folder)
    found = everything.search(vectors, RUN_DEPTH if name == "strong" else 10)
    if options.vectors:
        write_vectors(vectors, options.vectors, name)
    if name == "strong":
        write_run(found, options.out / "strong.trec")
    row = Row(name=name, step=saved.step, loss=saved.loss, mrr_at_10=everything.mrr_at_10(found))
    log.info("%s (%s): mrr@10 %.4f", name, saved.folder.name, row.mrr_at_10)
    return row


def _write_manifest(options: argparse.Namespace, rows: list[Row]) -> None:
    """What was asked for and what came out: two who have the same `collection` have the same texts."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    settings["packages"] = sorted(Path(package).name for package in options.packages)
    content = {
        "settings": settings,
        "collection": {path.name: sha256_of_file(path) for path in sorted((options.out / "beir").rglob("*.*"))},
        "checkpoints": [dataclasses.asdict(row) for row in rows],
    }
    write_atomically(options.out / "series.json", json.dumps(content, indent=2))


def _table(rows: list[Row]) -> str:
    lines = ["| name | step | loss | mrr@10 |", "| --- | --- | --- | --- |"]
    for row in rows:
        step = "" if row.step is None else str(row.step)
        loss = "" if row.loss is None else f"{row.loss:.3f}"
        lines.append(f"| {row.name} | {step} | {loss} | {row.mrr_at_10:.4f} |")
    return "\n".join(lines) + "\n"
