"""Memory and time of one validation as the corpus grows: generated documents, a tiny random encoder, `sampler=full`.

    python scripts/research/scale.py --docs 100000 1000000
    python scripts/research/scale.py --docs 10000000 --encoder static --shards 16 engine=ray engine.workers=2

Each size is one `python -m dr_validate` on a fresh state_dir, with the overrides that are given. Documents are JSON lines, or
so many Parquet shards that a pattern names. Every process is looked at every second: MiB are of its own memory (RssAnon), at
the quarters of the time that documents were encoded, and the most; pages of mapped files, which the kernel takes back, are
apart.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

NUM_QUERIES = 100
NUM_WORDS = 5000
KINDS = {
    "dr_validate.worker.main": "worker process",
    "ray::RayWorker": "worker of Ray",
    "raylet": "raylet",
    "gcs_server": "gcs",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--in", dest="place", type=Path, help="folder for the generated files (default: a temporary one)")
    parser.add_argument("--encoder", choices=("bert", "static"), default="bert")
    parser.add_argument("--shards", type=int, default=0, help="of Parquet; 0: one file of JSON lines")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory(dir=options.place) as name:
        folder = Path(name)
        {"bert": write_bert, "static": write_static}[options.encoder](folder / "checkpoints" / "checkpoint-1")
        sys.stdout.write("| documents | wall s | encode s | process | 0% | 25% | 50% | 75% | 100% | most | mapped |\n")
        sys.stdout.write(f"|{'---|' * 11}\n")
        for number in options.docs:
            write_collection(folder / f"c{number}", number, options.shards)
            state = folder / f"state-{number}"
            wall, seen = validate(folder, folder / f"c{number}", state, overrides)
            report = json.loads((state / "reports.jsonl").read_text().splitlines()[-1])
            assert report["corpus"]["encoded"] == number, report
            for process, numbers in table(seen):
                columns = (f"{number:,}", f"{wall:.0f}", f"{report['seconds']['encode']:.0f}", process, *numbers)
                sys.stdout.write(f"| {' | '.join(columns)} |\n")
            sys.stdout.flush()


def validate(folder: Path, collection: Path, state: Path, overrides: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds, and what each look saw."""
    command = [sys.executable, "-m", "dr_validate", f"source.path={folder / 'checkpoints'}", "dataset=tevatron"]
    command += [
        f"dataset.corpus={collection / 'corpus-*'}",
        f"dataset.queries={collection / 'queries.jsonl'}",
        "dataset.name=scale",
    ]
    command += [f"dataset.qrels={collection / 'qrels.tsv'}", "sampler=full", "tracker=none", "watch.mode=once", "device=cpu"]
    command += [
        "encoder.pooling=mean",
        "encoder.normalize=true",
        f"state_dir={state}",
        "store.embeddings_max_gib=0",
        *overrides,
    ]
    started, seen, over = time.monotonic(), list[dict[str, Any]](), threading.Event()
    process = subprocess.Popen(command)

    def look() -> None:
        while not over.wait(1):
            is_encoding = any((state / "tokens").glob("*/*.tokens"))
            seen.append({"at": time.monotonic(), "is_encoding": is_encoding, "memory": memory_under(process.pid)})

    thread = threading.Thread(target=look)
    thread.start()
    try:
        code = process.wait()
    finally:
        over.set()
        thread.join()
    if code:
        sys.exit(code)
    return time.monotonic() - started, seen


def memory_under(pid: int, kind: str = "watcher") -> dict[str, tuple[int, int]]:
    """KiB of own memory and of mapped files, by process."""
    found = {}
    with contextlib.suppress(OSError, ValueError, KeyError):  # it ends just now
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        own, mapped, shared = (int(status[key].split()[0]) for key in ("RssAnon", "RssFile", "RssShmem"))
        found[f"{kind} {pid}"] = own, mapped + shared
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= memory_under(int(child), kind_of(int(child)))
    return found


def kind_of(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return next((kind for word, kind in KINDS.items() if word in command), "other")


def table(seen: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    encoding = [look for look in seen if look["is_encoding"]]
    names = dict.fromkeys(name for look in encoding for name in look["memory"])
    for name in names:
        if name.startswith(("watcher", "worker")):
            there = [look["memory"][name] for look in encoding if name in look["memory"]]
            quarters = [there[min(len(there) - 1, len(there) * part // 4)][0] for part in range(5)]
            most = [max(look["memory"].get(name, (0, 0))[part] for look in seen) for part in (0, 1)]
            yield name.rpartition(" ")[0], [f"{kib / 1024:.0f}" for kib in (*quarters, *most)]


def write_collection(folder: Path, num_documents: int, num_shards: int) -> None:
    chance = random.Random(num_documents)
    folder.mkdir(parents=True)
    parts = num_shards or 1
    bounds = [num_documents * part // parts for part in range(parts + 1)]
    with Pool(2) as pool:
        jobs = [(folder, part, bounds[part], bounds[part + 1], num_shards > 0) for part in range(parts)]
        pool.starmap(write_shard, jobs, chunksize=1)
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for n in range(NUM_QUERIES):
            queries.write(json.dumps({"_id": f"q{n}", "text": f"w{chance.randrange(NUM_WORDS)} w{n}"}) + "\n")
            qrels.write(f"q{n}\td{chance.randrange(num_documents)}\t1\n")


def write_shard(folder: Path, part: int, first: int, stop: int, is_parquet: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance, words = random.Random(first), [f"w{n}" for n in range(NUM_WORDS)]
    rows = ({"_id": f"d{n}", "text": " ".join(chance.choices(words, k=chance.randrange(5, 20)))} for n in range(first, stop))
    if not is_parquet:
        with (folder / f"corpus-{part:05d}.jsonl").open("w") as stream:
            stream.writelines(f"{json.dumps(row)}\n" for row in rows)
        return
    schema = pa.schema({"_id": pa.string(), "text": pa.string()})
    with pq.ParquetWriter(folder / f"corpus-{part:05d}.parquet", schema) as writer:
        for start in range(first, stop, 100_000):
            batch = [next(rows) for _ in range(start, min(stop, start + 100_000))]
            writer.write_table(pa.Table.from_pylist(batch, schema))


def tokenizer() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", *(f"w{n}" for n in range(NUM_WORDS))]
    core = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return core


def write_bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    core = tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = BertConfig(
        vocab_size=core.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def write_static(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    SentenceTransformer(modules=[StaticEmbedding(tokenizer(), embedding_dim=32)], device="cpu").save(str(folder))


if __name__ == "__main__":
    main()
