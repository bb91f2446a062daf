"""A pipeline in this process on a collection that is big enough to take parts of, and checkpoints that differ in quality."""

import json
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dr_validate.config import build, conf_dir
from dr_validate.values import Checkpoint, Report
from dr_validate.worker.pipeline import Pipeline
from tests.factories import WORDS

NUM_DOCUMENTS, NUM_QUERIES = 1500, 40


class Unhurried:
    """A control that never stops anything."""

    def check(self) -> None:
        pass

    def progress(self, phase: str, done: int, total: int) -> None:
        pass


def write_collection(folder: Path) -> Path:
    """Documents of six words; a query repeats four of those of its document."""
    rng = np.random.default_rng(5)
    vocabulary = [*WORDS, *map(str, range(99))]
    texts = [list(rng.choice(vocabulary, 6, replace=False)) for _ in range(NUM_DOCUMENTS)]
    folder.mkdir()
    rows = [{"_id": f"d{n}", "title": "", "text": " ".join(words)} for n, words in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{n}", "text": " ".join(texts[n][:4])} for n in range(NUM_QUERIES)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(NUM_QUERIES))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def blur(folder: Path, share: float) -> Path:
    """Take a share of what a checkpoint knows of words away from it: 0 leaves it as it is, 1 nothing."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    words = weights[name]
    noise = torch.randn(words.shape[1], generator=torch.Generator().manual_seed(1))
    weights[name] = (1 - share) * words + share * noise  # the same for all words
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def open_pipeline(collection: Path, state_dir: Path, *overrides: str) -> Pipeline:
    """On one CPU, with metrics mrr@10 and recall@20."""
    stated = ["dataset=beir", "tracker=none", "encoder.pooling=mean", "encoder.normalize=true", "source.path=unused"]
    stated += [f"dataset.path={collection}", f"state_dir={state_dir}", "metrics=[mrr@10,recall@20]", *overrides]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("config", stated)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    pipeline = Pipeline(build({str(key): value for key, value in plain.items()}), "cpu")
    pipeline.open()
    return pipeline


def validated(pipeline: Pipeline, folder: Path, step: int, *, full: bool = False) -> Report:
    """The Report of the checkpoint in `folder`."""
    return pipeline.validate(checkpoint_of(step), folder, full=full, control=Unhurried())


def checkpoint_of(step: int) -> Checkpoint:
    """`c<step>`, its digest `sha256:` and the step in four hex digits."""
    name, digest, at = f"c{step}", f"sha256:{step:04x}", "2026-11-21T03:12:00Z"
    return Checkpoint(name=name, version=name, digest=digest, step=step, step_from="name", created_at=at, uri=name)
