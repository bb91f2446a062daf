"""What tests of every part are made of: small collections, checkpoints and Reports, configurations, the command line."""

import copy
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dr_validate.config import STAGES, Run, build, conf_dir
from dr_validate.values import Checkpoint, Estimate, Report, Status
from tests import warm

WORDS = ["compiler", "socket", "thread", "matrix", "parser", "decimal"]
WORDS += ["queue", "archive", "locale", "signal", "buffer", "iterator"]
CHOICES = sorted(path for stage in STAGES for path in (conf_dir() / stage).glob("*.yaml"))
AT = "2026-11-21T03:15:10Z"


def write_collection(folder: Path, num_documents: int) -> Path:
    (folder / "qrels").mkdir(parents=True)
    texts = [f"{WORDS[n % 12]} {WORDS[(n * 5 + 1) % 12]} number {n}" for n in range(48)]
    texts += [f"number {n}" for n in range(48, num_documents)]  # no query finds these by its words
    documents = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    queries = [{"_id": f"q{n}", "text": f"{WORDS[n]} {WORDS[(n * 5 + 1) % 12]}"} for n in range(12)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(12))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_checkpoint(folder: Path, seed: int = 0, step: int | None = None, tokenizer: bool = True) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {
        piece: n for n, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "number", *WORDS, *map(str, range(99))])
    }
    if tokenizer:
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=32, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


class CommandLine:
    """`python -m dr_validate` in a folder of its own, W&B kept inside it; started warm (`tests/warm.py`) unless `cold`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "WANDB_DIR": str(folder),
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "PYTHONWARNINGS": "default",
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("WANDB_SERVICE", None)

    def start(self, *arguments: str, cold: bool = False, **options: Any) -> "subprocess.Popen[str]":
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [sys.executable, "-m", "dr_validate", *arguments]
        return warm.popen(command, cold=cold, cwd=self.folder, env=self.environment, **pipes)

    def __call__(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "dr_validate", *arguments]
        return warm.run(command, cwd=self.folder, env=self.environment, **options)

    def reports(self, state_dir: str = ".dr_validate") -> list[Mapping[str, Any]]:
        """Of the whole lines: the last one may be half written now."""
        path = self.folder / state_dir / "reports.jsonl"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]


def choice(path: Path) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def composed(*overrides: str) -> dict[str, Any]:
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:  # which takes a quarter of a second
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("config", list(overrides))
    OmegaConf.resolve(config)
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def built(*overrides: str) -> Run:
    return build(composed(*overrides))


def checkpoint(step: int = 500, name: str = "") -> Checkpoint:
    return Checkpoint(
        name=name or f"checkpoint-{step}",
        version="v3",
        digest=f"sha256:{step:04x}",
        step=step,
        step_from="folder name",
        created_at="2026-11-21T03:12:00Z",
        uri="somewhere",
    )


def report(step: int = 500, status: Status = "done", spec: str = "s1", error: str | None = None, name: str = "") -> Report:
    done = status == "done"
    return Report(
        checkpoint=checkpoint(step, name),
        dataset="vaswani",
        sampler="random",
        spec=spec,
        status=status,
        at=AT,
        error=None if done else error or "broken",
        metrics={"mrr@10": Estimate(value=step / 1000, low=0.0, high=1.0, naive=1.0)} if done else {},
    )


def valued_report(step: int, spec: str, estimate: Estimate | None) -> Report:
    """Done with this value of mrr@10, or skipped for want of weights."""
    return replace(
        report(step, "done" if estimate else "skipped", spec, "incomplete: no weights"),
        sampler="stratified",
        at=f"2026-11-21T03:15:{step // 100:02}Z",
        metrics={"mrr@10": estimate} if estimate else {},
        corpus={"encoded": 1078},
        seconds={"total": 2.4},
    )


def told(
    step: int = 500, spec: str = "s1", name: str = "", at: str = "2026-11-21T03:15:10Z", error: str | None = None
) -> Report:
    """As a tracker is told of it: done, or skipped for this reason, with a name that ASCII has no letters for."""
    made = report(step, "skipped" if error else "done", spec, error, name)
    metrics = {} if error else {"mrr@10": Estimate(value=0.3, low=0.0, high=0.3, naive=0.3)}
    return replace(made, checkpoint=replace(made.checkpoint, uri="größe"), at=at, metrics=metrics)
