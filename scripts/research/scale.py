"""Peak memory and time of one validation as the corpus grows: generated documents, a tiny random encoder, `sampler=full`.

    python scripts/research/scale.py --docs 100000 1000000

Each size is one `python -m dr_validate` on a fresh state_dir; the figures are the worker's, which does all the work.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

NUM_QUERIES = 100
NUM_WORDS = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--in", dest="place", type=Path, help="folder for the generated files (default: a temporary one)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.place) as name:
        folder = Path(name)
        write_tiny_checkpoint(folder / "checkpoints" / "checkpoint-1")
        for number in options.docs:
            write_collection(folder / f"c{number}", number)
            rows.append((number, *validate(folder, folder / f"c{number}", number)))
    sys.stdout.write("| documents | wall s | encode s | peak memory MiB | against the first |\n|---|---|---|---|---|\n")
    for number, wall, encode, peak in rows:
        sys.stdout.write(f"| {number:,} | {wall:.0f} | {encode:.0f} | {peak:.0f} | {peak / rows[0][3]:.2f} |\n")


def validate(folder: Path, collection: Path, number: int) -> tuple[float, float, float]:
    state = folder / f"state-{number}"
    command = [sys.executable, "-m", "dr_validate", f"source.path={folder / 'checkpoints'}", "dataset=beir"]
    command += [f"dataset.path={collection}", "sampler=full", "tracker=none", "watch.mode=once", f"state_dir={state}"]
    command += ["encoder.pooling=mean", "encoder.normalize=true"]
    measured = f"import resource, subprocess, sys; code = subprocess.call({command!r}); " + (
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", measured], stdout=subprocess.PIPE, text=True, check=True)
    wall = time.perf_counter() - started
    report = json.loads((state / "reports.jsonl").read_text().splitlines()[-1])
    return wall, report["seconds"]["encode"], int(result.stdout.split()[-1]) / 1024


def write_collection(folder: Path, num_documents: int) -> None:
    chance = random.Random(num_documents)
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as stream:
        for n in range(num_documents):
            words = " ".join(f"w{chance.randrange(NUM_WORDS)}" for _ in range(chance.randrange(5, 20)))
            stream.write(json.dumps({"_id": f"d{n}", "text": words}) + "\n")
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels" / "test.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for n in range(NUM_QUERIES):
            queries.write(json.dumps({"_id": f"q{n}", "text": f"w{chance.randrange(NUM_WORDS)} w{n}"}) + "\n")
            qrels.write(f"q{n}\td{chance.randrange(num_documents)}\t1\n")


def write_tiny_checkpoint(folder: Path) -> None:
    pieces = ["[PAD]", "[UNK]", *(f"w{n}" for n in range(NUM_WORDS))]
    core = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


if __name__ == "__main__":
    main()
