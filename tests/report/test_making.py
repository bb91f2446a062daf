"""What the page says of how its numbers were made."""

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from dr_validate.report.tables import making
from tests.report.training import FULL, Training, bound, exact

TOWER = {"architecture": "BertModel", "pooling": "mean", "heads": [], "normalize": True, "prefix": "", "max_length": 256}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0"}
MADE = {
    "seed": 7,
    "top_k": 100,
    "metrics": ["mrr@10"],
    "dataset": {"choice": "beir", "path": "~/data/vaswani", "ignore_identical_ids": False},
    "sampler": {"choice": "random", "fraction": 0.05},
    "index": {"choice": "flat"},
}


def notes(**changes: Any) -> dict[str, Any]:
    """Of a Report by one encoder on one machine, with changes to the tower of its queries."""
    encoder = {"kind": "transformers", "dtype": "float32", "query": {**TOWER, **changes}, "document": TOWER}
    return {"encoder": encoder, "versions": VERSIONS, "device": "cpu"}


def facts(training: Training) -> Mapping[str, str]:
    made = ElementTree.fromstring(f"<div>{making(training.section())}</div>").find("dl")
    assert made is not None
    texts = ["".join(part.itertext()) for part in made]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def test_everything_that_numbers_depend_on_is_told(training: Training) -> None:
    training.strategy(made=MADE, command="python -m dr_validate sampler=random", dataset_fingerprint="f1")
    training.strategy(FULL, "full", made={**MADE, "sampler": {"choice": "full"}}, command="python -m dr_validate sampler=full")
    training.done(100, bound(0.3), notes=notes())
    training.done(100, exact(0.2), FULL, notes=notes())
    known = facts(training)
    assert known["best checkpoint"] == "checkpoint-100, step 100 (folder name)"
    assert known["source"] == "runs//100"
    assert known["its digest"] == "sha256:0064"
    assert known["model"] == "BertModel"
    assert (known["pooling"], known["normalize"], known["length"], known["prefix"]) == ("mean", "yes", "256 tokens", "none")
    assert known["data set"] == "vaswani; beir, path=~/data/vaswani, ignore_identical_ids=false"
    assert known["random 5%"] == f"random, fraction=0.05; seed 7; 500 of 10,000 documents (5%); spec {'a' * 16}"
    assert known["full corpus"] == f"10,000 of 10,000 documents (100%); spec {FULL}"
    assert (known["index"], known["metrics"], known["top_k"]) == ("flat", "mrr@10", "100")
    assert known["versions"] == "python 3.11.7, torch 2.13.0"
    page = making(training.section())
    assert page.count("<pre>") == 2 and "sampler=random</pre>" in page and "sampler=full</pre>" in page


def test_sides_and_checkpoints_that_differ_are_told_apart(training: Training) -> None:
    training.strategy()
    training.done(100, bound(0.3), notes=notes(prefix="query: ", max_length=32))
    training.done(200, bound(0.3), notes=notes(prefix="query: ", max_length=32, pooling="cls"))
    known = facts(training)
    assert known["length"] == "queries: 32 tokens, documents: 256 tokens"
    assert known["prefix"] == "queries: \u201cquery: \u201d, documents: none"
    assert known["pooling"] == "mean (step 100); queries: cls, documents: mean (step 200)"


def test_what_an_older_version_did_not_record_is_left_out(training: Training) -> None:
    training.sample(bound(0.3))
    known = facts(training)
    assert known["random 5%"] == f"500 of 10,000 documents (5%); spec {'a' * 16}"
    assert not {"versions", "model", "pooling", "index", "top_k", "SHA-256 of its weights"} & known.keys()
    assert "make it again" not in making(training.section())
