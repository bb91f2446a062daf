"""sentence-transformers' InformationRetrievalEvaluator with its defaults, which sorts by length and pads batches of 32."""

from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from scripts.research.benchmark.job import Job, read_qrels, read_texts
from scripts.research.benchmark.meter import Meter


def sentence_transformers(job: Job, meter: Meter) -> float:
    """nDCG@10 of the last checkpoint. One maximum length for both sides: it knows no other for queries."""
    relevant = {query: {d for d, gain in gains.items() if gain > 0} for query, gains in read_qrels(job.collection).items()}
    queries, corpus = (read_texts(job.collection / f"{name}.jsonl") for name in ("queries", "corpus"))
    evaluator = InformationRetrievalEvaluator(queries, corpus, relevant)
    _measure(evaluator, "embed_inputs", "encode", meter)
    _measure(evaluator, "compute_metrics", "score", meter)
    for folder in job.checkpoints:
        with meter.phase("load"):
            model = SentenceTransformer(str(folder), device=job.device, local_files_only=True)
            model.max_seq_length = job.document_length
        _measure(model, "preprocess", "tokenize", meter)
        model[0].register_forward_pre_hook(lambda module, inputs: _count(inputs[0], meter))
        with meter.phase("search"):  # what is neither of the phases inside
            values = evaluator(model)
    return float(next(value for name, value in values.items() if name.endswith("ndcg@10")))


def _measure(owner: Any, name: str, phase: str, meter: Meter) -> None:
    """Let calls of one method count as a phase."""
    method = getattr(owner, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        with meter.phase(phase):
            return method(*args, **kwargs)

    setattr(owner, name, measured)


def _count(features: Any, meter: Meter) -> None:
    meter.mark("first batch")
    meter.count(features["attention_mask"].sum(1).tolist(), features["input_ids"].numel())
