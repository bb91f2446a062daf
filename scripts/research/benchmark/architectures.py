"""Which way each architecture takes through this project, and how far its vectors are from those of plain transformers.

The reference is transformers' model in float32, one text at a time and without padding, its vectors pooled and normalised here.
Both get the same token ids. Random weights are larger than a fresh model's, so that differences show; what they rank means
nothing, so their rankings are compared with each other instead of with judgements.
"""

import gc
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytrec_eval
import torch

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.values import Float32, TokenBlock
from scripts.research.benchmark.job import read_qrels, read_texts
from scripts.research.benchmark.table import markdown

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, Dtype] = ("float32", "bfloat16")
SHAPE = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 1536}
DECODER = SHAPE | {"intermediate_size": 1024, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048}
DISTILBERT = {"dim": 384, "n_layers": 4, "n_heads": 6, "hidden_dim": 1536}
ROBERTA = SHAPE | {"max_position_embeddings": 514, "type_vocab_size": 1}
WINDOW = 600  # more than is checked when a checkpoint is loaded, and less than the longest texts have tokens
TOP = 10
SPREAD = 0.05  # of random weights
LONG_TEXTS, JOINED = 4, 40  # texts beyond every window here, each of so many documents
MAX_LENGTH = 1500
HEAD = ["architecture", "type", "batches", "linear layers", "largest difference", "of transformers", "ranking"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An architecture as transformers' configuration class calls it; without a class, a checkpoint with real weights."""

    label: str
    config: str = ""
    sizes: Mapping[str, Any]
    pooling: Literal["mean", "cls", "last"] = "mean"


CASES = (
    Case(label="BERT (MiniLM's weights)", sizes={}),
    Case(label="BERT, first token", config="BertConfig", sizes=SHAPE, pooling="cls"),
    Case(label="DistilBERT", config="DistilBertConfig", sizes=DISTILBERT),
    Case(label="RoBERTa", config="RobertaConfig", sizes=ROBERTA),
    Case(label="MPNet", config="MPNetConfig", sizes=ROBERTA),
    Case(label="XLM-R", config="XLMRobertaConfig", sizes=ROBERTA, pooling="cls"),
    Case(label="ModernBERT", config="ModernBertConfig", sizes=SHAPE | {"intermediate_size": 576}),
    Case(label="Qwen2", config="Qwen2Config", sizes=DECODER, pooling="last"),
    Case(label="Qwen3", config="Qwen3Config", sizes=DECODER, pooling="last"),
    Case(label=f"Mistral, window {WINDOW}", config="MistralConfig", sizes=DECODER | {"sliding_window": WINDOW}, pooling="last"),
    Case(label="Llama", config="LlamaConfig", sizes=DECODER, pooling="last"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Texts by id, and who is relevant to whom."""

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]


def small_collection(data: Path, num_queries: int, num_documents: int) -> Collection:
    """The first queries of a BEIR folder and documents judged for them, filled up with other documents and a few long ones."""
    texts, queries, qrels = read_texts(data / "corpus.jsonl"), read_texts(data / "queries.jsonl"), read_qrels(data)
    chosen = [query for query in queries if query in qrels][:num_queries]
    wanted = [document for query in chosen for document in qrels[query]]
    names = list(dict.fromkeys([*wanted, *texts]))[:num_documents]
    rest = [text for name, text in texts.items() if name not in names]
    documents = {name: texts[name] for name in names}
    for number in range(LONG_TEXTS):
        documents[f"long-{number}"] = " ".join(rest[number * JOINED : (number + 1) * JOINED])
    return Collection(queries={query: queries[query] for query in chosen}, documents=documents, qrels=qrels)


def compare_all(minilm: Path, collection: Collection, cases: Sequence[Case] = CASES) -> str:
    """The table, as markdown."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for number, case in enumerate(cases):
            folder = save(case, Path(name) / str(number), minilm) if case.config else minilm
            rows += compare(case, folder, collection)
            gc.collect()
    return markdown(HEAD, rows)


def compare(case: Case, folder: Path, collection: Collection) -> list[list[str]]:
    """A row for each type."""
    rows: list[list[str]] = []
    exact: Mapping[str, Float32] = {}
    for dtype in DTYPES:
        encoder = AutoEncoder(pooling=case.pooling, normalize=True, dtype=dtype, document_max_length=MAX_LENGTH)
        with encoder.load(folder, "cpu") as model:
            blocks = {
                "query": model.tokenizer("query").tokenize(list(collection.queries.values())),
                "document": model.tokenizer("document").tokenize(list(collection.documents.values())),
            }
            ours = {
                "query": np.asarray(model.encode(blocks["query"], "query")),
                "document": np.asarray(model.encode(blocks["document"], "document")),
            }
            contract = model.contract
        theirs = {side: plain(folder, block, case.pooling, getattr(torch, dtype)) for side, block in blocks.items()}
        exact = exact or theirs  # float32 comes first
        rows.append(
            [
                case.label,
                dtype,
                str(contract["batches"]),
                str(contract["linear_layers"]),
                f"{largest(ours, exact):.1e}",
                f"{largest(theirs, exact):.1e}" if dtype != "float32" else "-",
                ranked(case, ours, exact, collection),
            ]
        )
    return rows


def save(case: Case, folder: Path, minilm: Path) -> Path:
    """A model with random weights, and MiniLM's tokenizer: a vocabulary is a vocabulary."""
    import transformers

    family: Any = transformers
    config = getattr(family, case.config)(vocab_size=30522, pad_token_id=1, bos_token_id=101, eos_token_id=102, **case.sizes)
    torch.manual_seed(7)
    model = family.AutoModel.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower():
            parameter.data.normal_(0, SPREAD)
    model.save_pretrained(str(folder))
    for path in minilm.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@torch.inference_mode()
def plain(folder: Path, block: TokenBlock, pooling: str, dtype: torch.dtype) -> Float32:
    """(num_texts, dim) unit vectors by transformers alone, a text at a time."""
    import transformers

    family: Any = transformers.AutoModel
    model = family.from_pretrained(str(folder), dtype=dtype, local_files_only=True).eval()
    rows = []
    for start, stop in zip(block.offsets[:-1], block.offsets[1:], strict=True):
        ids = torch.from_numpy(np.asarray(block.ids[start:stop]).astype(np.int64))
        hidden = model(input_ids=ids[None]).last_hidden_state[0].float()
        rows.append({"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling])
    vectors: Float32 = torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()
    return vectors


def largest(found: Mapping[str, Float32], expected: Mapping[str, Float32]) -> float:
    """Difference of any number of any vector."""
    return max(float(np.abs(found[side] - expected[side]).max()) for side in expected)


def ranked(case: Case, found: Mapping[str, Float32], expected: Mapping[str, Float32], collection: Collection) -> str:
    """What the difference does to rankings: of nDCG@10 for real weights, else the share of the same documents among the ten."""
    scores, exact = (vectors["query"] @ vectors["document"].T for vectors in (found, expected))
    if not case.config:
        return f"nDCG@{TOP} {ndcg(exact, collection):.4f} {ndcg(scores, collection) - ndcg(exact, collection):+.4f}"
    tops, exact_tops = (np.argsort(-table, axis=1, kind="stable")[:, :TOP] for table in (scores, exact))
    shares = [len(set(row) & set(other)) / TOP for row, other in zip(tops.tolist(), exact_tops.tolist(), strict=True)]
    return f"overlap@{TOP} {np.mean(shares):.3f}"


def ndcg(scores: Float32, collection: Collection) -> float:
    """nDCG@10 over all queries, by trec_eval."""
    names = list(collection.documents)
    run = {query: dict(zip(names, map(float, row), strict=True)) for query, row in zip(collection.queries, scores, strict=True)}
    judged = {query: dict(collection.qrels[query]) for query in run}
    values = pytrec_eval.RelevanceEvaluator(judged, {f"ndcg_cut.{TOP}"}).evaluate(run)
    return float(np.mean([value[f"ndcg_cut_{TOP}"] for value in values.values()]))
