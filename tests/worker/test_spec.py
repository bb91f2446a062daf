"""Every setting that can change a score changes the spec, one by one; those that cannot are named here."""

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.config import Settings, build
from dr_validate.errors import SetupError
from dr_validate.estimator.priors import PRIORS
from dr_validate.values import Checkpoint, Ranking, TestSet
from dr_validate.worker.samples import Samples
from tests.factories import composed, write_collection

CHANGED: Mapping[str, Mapping[str, Any]] = {
    "encoder=auto": {
        "pooling": "cls",
        "normalize": False,
        "query_prefix": "query: ",
        "document_prefix": "passage: ",
        "query_max_length": 7,
        "document_max_length": 7,
        "dtype": "bfloat16",
        "append_eos": True,
        "tokenizer": "MODEL",
        "base_model": "MODEL",
        "config": "MODEL",
        "weights_prefix": "encoder.",
        "native": True,
    },
    "sampler=random": {"fraction": 0.5},
    "sampler=stratified": {
        "fraction": 0.5,
        "pool": "RUN",
        "pool_share": 0.4,
    },
    "sampler=run_pool": {"run": "RUN", "depth": 7, "fraction": {"fraction": 0.5, "depth": None}, "bm25_depth": 500},
    "index=factory": {"spec": "HNSW16"},
    "": {"seed": 7, "top_k": 110, "metrics": ["mrr@10", "ndcg@10"]},
}
BEFORE: Mapping[str, list[str]] = {
    "sampler=random": ["sampler.fraction=0.6"],
    "sampler=stratified": ["sampler.fraction=0.6", "sampler.pool_share=0.5"],
    "sampler=run_pool": ["sampler.run=bm25", "sampler.depth=5"],
    "index=factory": ["index.spec=HNSW8"],
}
WITHOUT_EFFECT: Mapping[str, Mapping[str, Any]] = {
    "encoder=auto": {"max_tokens_per_batch": 9},
    "": {
        "task": "doctor",
        "device": "cpu",
        "state_dir": "elsewhere",
        "write_ranking": True,
        "block_documents": 9,
        "plugins": ["my_package"],
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection, the folder of a model and a run."""
    folder = tmp_path_factory.mktemp("spec")
    write_collection(folder / "collection", 400)
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"model_type": "bert"}')
    lines = [f"q{n} Q0 d{(7 * n + 3 * rank) % 400} {rank} {100 - rank} x" for n in range(12) for rank in range(1, 31)]
    (folder / "run.trec").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def test_set(place: Path) -> TestSet:
    run = build(composed(*always(place)))
    found: TestSet = run.dataset.open(place / "state/datasets")
    return found


def always(place: Path) -> list[str]:
    stated = ["source.path=unused", "dataset=beir", f"dataset.path={place / 'collection'}", f"state_dir={place / 'state'}"]
    return [*stated, "tracker=none", "sampler=random", "sampler.fraction=0.6"]


def choices() -> list[str]:
    return sorted(CHANGED)


@pytest.mark.parametrize("choice", choices())
def test_every_setting_that_can_change_a_score_changes_the_spec(choice: str, place: Path, test_set: TestSet) -> None:
    group = choice.partition("=")[0]
    stated = always(place)[: -2 if group == "sampler" else None]
    config = composed(*stated, *([choice] if choice else []), *BEFORE.get(choice, []))
    plain = spec_of(config, test_set)
    here = config if not group else config[group]
    for changes, counts in ((CHANGED[choice], True), (WITHOUT_EFFECT.get(choice, {}), False)):
        for key, value in changes.items():
            named = {"MODEL": str(place / "model"), "RUN": str(place / "run.trec")}
            new = value if isinstance(value, dict) else {key: named.get(str(value), value)}
            new = {"pool": [new["pool"]]} if key == "pool" else new
            before = {name: here[name] for name in new}
            here.update(new)
            assert (spec_of(config, test_set) != plain) == counts, key
            here.update(before)
    assert spec_of(config, test_set) == plain


@pytest.mark.parametrize("choice", choices())
def test_no_setting_is_forgotten_here(choice: str) -> None:
    named = {*CHANGED[choice], *WITHOUT_EFFECT.get(choice, {})}
    if not choice:
        assert {field.name for field in dataclasses.fields(Settings)} == named
        return
    group = choice.partition("=")[0]
    module, _, cls = composed(choice)[group]["_target_"].rpartition(".")
    fields = {field.name for field in dataclasses.fields(getattr(importlib.import_module(module), cls))}
    assert fields == named


def test_constants_of_the_estimator_belong_to_specs_whose_values_are_corrected(
    place: Path, test_set: TestSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*always(place))
    specs = [Samples(build(plain_of(config)), test_set)]
    monkeypatch.setattr("dr_validate.worker.samples.PRIORS", dataclasses.replace(PRIORS, model_error_sd=0.07))
    specs.append(Samples(build(plain_of(config)), test_set))
    assert specs[0].sampled.spec != specs[1].sampled.spec
    assert specs[0].full.spec == specs[1].full.spec, "a full-corpus ranking needs no estimate"


def kept(samples: Samples, test_set: TestSet, step: int, first: int) -> None:
    """A checkpoint with a kept full-corpus ranking: of each query its relevant document, and 20 from `first` on, in that order
    with `first` above 0, else the other way round and out of the first ten."""
    of = Checkpoint(
        name=f"step-{step}", version="v", digest=f"sha256:{step:04}", step=step, step_from="name", created_at="", uri=""
    )
    others = np.tile(np.arange(abs(first), abs(first) + 20), (12, 1))
    relevant = test_set.qrels.documents[:, None]
    documents = np.hstack([relevant, others] if first > 0 else [others, relevant])
    samples.baselines.keep(of, Ranking(documents=documents, scores=np.zeros(documents.shape, dtype=np.float32)))


def test_a_baseline_in_the_pool_is_the_earliest_that_is_good_enough_and_stays_the_one(
    place: Path, test_set: TestSet, tmp_path: Path
) -> None:
    def opened(*more: str) -> Samples:
        config = composed(*always(place), "sampler=stratified", "sampler.fraction=0.4", f"state_dir={tmp_path}", *more)
        return Samples(build(plain_of(config)), test_set)

    plain, both = opened(), "sampler.pool=[bm25,baseline]"
    with pytest.raises(SetupError, match=r"'baseline' in the pool, but no full-corpus ranking of .* sampler=full"):
        opened(both)
    kept(plain, test_set, 10, first=-200)
    kept(plain, test_set, 30, first=300)
    chosen = opened(both)
    certain = set(chosen.sampled.sample.ordinals[chosen.sampled.sample.inclusion == 1].tolist())
    assert certain >= set(range(300, 310)), "the top of step 30's"
    assert not certain & set(range(200, 220)), "none of step 10's"
    assert len({plain.sampled.spec, chosen.sampled.spec, chosen.full.spec}) == 3
    assert plain.full.spec == chosen.full.spec
    kept(plain, test_set, 20, first=250)  # earlier and good enough, but late
    again = opened(both)
    assert again.sampled.spec == chosen.sampled.spec
    assert again.sampled.sample.fingerprint == chosen.sampled.sample.fingerprint
    (file,) = (tmp_path / "runs").glob("baseline-*.trec.gz")
    file.unlink()
    assert opened(both).sampled.spec not in (chosen.sampled.spec, plain.sampled.spec)


def plain_of(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**json.loads(json.dumps(config)), "state_dir": config["state_dir"]}


def spec_of(config: Mapping[str, Any], test_set: TestSet) -> str:
    return Samples(build(plain_of(config)), test_set).sampled.spec
