"""What every contender is given: the same texts, checkpoints, lengths and device. Imports nothing heavy."""

import dataclasses
import gzip
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TOP_K = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`collection` is a BEIR folder, `ready` holds its token ids for who wants them ready; `checkpoints` are folders.

    Lengths are maxima in tokens, special ones included.
    """

    collection: Path
    ready: Path
    checkpoints: tuple[Path, ...]
    query_length: int = 32
    document_length: int = 128
    device: str = "cpu"

    @property
    def sides(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Name of the file and maximum length of each side."""
        return ("queries", self.query_length), ("corpus", self.document_length)

    def save(self, path: Path) -> None:
        """For `read_job` in another process."""
        path.write_text(json.dumps(dataclasses.asdict(self), default=str))


def read_job(path: Path) -> Job:
    """What `save` wrote."""
    fields = json.loads(path.read_text())
    fields |= {name: Path(fields[name]) for name in ("collection", "ready")}
    return Job(**{**fields, "checkpoints": tuple(map(Path, fields["checkpoints"]))})


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a JSON lines file, or of `path` with .gz added where only that exists."""
    compressed = Path(f"{path}.gz")
    with path.open(encoding="utf-8") if path.exists() else gzip.open(compressed, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def read_texts(path: Path) -> dict[str, str]:
    """Text by id: title and text joined by one space, as every contender reads them."""
    return {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in read_rows(path)}


def read_qrels(collection: Path) -> dict[str, dict[str, int]]:
    """Gains by query and document, of the test split."""
    qrels: dict[str, dict[str, int]] = {}
    for line in (collection / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, gain = line.split("\t")
        qrels.setdefault(query, {})[document] = int(gain)
    return qrels


def write_part(data: Path, folder: Path, num_documents: int, seed: int) -> tuple[int, int]:
    """A collection of about `num_documents` documents of `data` (0: all of them), the judged ones always among them.

    Returns how many documents it has and how many of them are judged.
    """
    judged = {document for gains in read_qrels(data).values() for document in gains}
    others = [row["_id"] for row in read_rows(data / "corpus.jsonl") if row["_id"] not in judged]
    if num_documents:
        others = random.Random(seed).sample(others, max(0, min(num_documents - len(judged), len(others))))
    kept = judged.union(others)
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for row in read_rows(data / "corpus.jsonl"):
            if row["_id"] in kept:
                stream.write(json.dumps(row) + "\n")
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in read_rows(data / "queries.jsonl"))
    shutil.copyfile(data / "qrels" / "test.tsv", folder / "qrels" / "test.tsv")
    return len(kept), len(judged)


def write_ready(job: Job) -> None:
    """Token ids, cut to the lengths and with special tokens, on disk before Asyncval's way starts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(job.checkpoints[0] / "tokenizer.json"))
    tokenizer.no_padding()
    job.ready.mkdir()
    for name, length in job.sides:
        tokenizer.enable_truncation(length)
        texts = read_texts(job.collection / f"{name}.jsonl")
        encodings = tokenizer.encode_batch(list(texts.values()))
        with (job.ready / f"{name}.jsonl").open("w") as stream:
            for text_id, encoding in zip(texts, encodings, strict=True):
                stream.write(json.dumps({"text_id": text_id, "text": encoding.ids}) + "\n")


def write_checkpoints(model: Path, folder: Path, number: int) -> tuple[Path, ...]:
    """Copies of one checkpoint that differ in the last digits of one weight: same work, same scores, other digests."""
    from safetensors.numpy import load_file, save_file

    copies = tuple(folder / f"checkpoint-{step + 1}" for step in range(number))
    for step, copy in enumerate(copies):
        shutil.copytree(model, copy)
        if step:
            file = copy / "model.safetensors"
            weights = load_file(file)
            name = next(name for name in sorted(weights) if name.endswith("LayerNorm.weight"))
            weights[name] = weights[name] * (1 + 1e-6 * step)
            save_file(weights, file, metadata={"format": "pt"})
    return copies


def model_numbers(model: Path) -> Mapping[str, int] | None:
    """Layers, width and width of the feed-forward part of a BERT-shaped checkpoint, None for another architecture."""
    config = json.loads((model / "config.json").read_text())
    names = {"layers": "num_hidden_layers", "width": "hidden_size", "inner": "intermediate_size"}
    if any(name not in config for name in names.values()) or config.get("model_type") not in ("bert", "roberta", "mpnet"):
        return None
    return {short: int(config[name]) for short, name in names.items()}
