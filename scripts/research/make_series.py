"""A collection of docstrings and a series of checkpoints trained on it: what the fidelity study was made with, for anyone.

    python scripts/research/make_series.py --packages json email DOWNLOADED.whl --base MINILM --out series --strong
    python -m dr_validate source.path=series/checkpoints dataset=beir dataset.path=series/beir sampler=full watch.mode=once \\
        state_dir=state encoder.dtype=bfloat16
    python scripts/research/fidelity_study.py --state-dir state --data series/beir --runs bm25,series/strong.trec \\
        encoder.dtype=bfloat16

or, without dr_validate's own run between, with the vectors that are made for the table at the end anyway:

    python scripts/research/make_series.py --packages ... --base MINILM --out series --strong --vectors series/vectors
    python scripts/research/fidelity_study.py --vectors series/vectors --checkpoints 'c*' --runs bm25,strong

`--packages` are installed ones, folders, wheels or sdists; nothing in them runs. The first line of a docstring is a query, the
rest of it the document that it should find. `--base` is a sentence-transformers folder with a BERT (all-MiniLM-L6-v2).
`--model minilm3` trains three layers of it after noise, `static` its token embeddings alone; both are ordinary checkpoints.
"""

import argparse
import logging
import resource
import sys
from pathlib import Path
from typing import Any

DEFAULTS: dict[str, dict[str, Any]] = {
    "minilm3": {
        "steps": (0, 15, 30, 50, 80, 120, 170, 240, 320, 420, 520, 640),
        "noise": 0.6,
        "learning_rate": 2e-4,
        "batch_size": 32,
        "warmup_steps": 20,
    },
    "static": {
        "steps": (0, 8, 16, 28, 45, 70, 100, 140, 190, 250, 330, 450),
        "noise": 1.0,
        "learning_rate": 2e-3,
        "batch_size": 256,
        "warmup_steps": 0,
    },
}


def main() -> None:
    options = parse(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from dr_validate.errors import DrValidateError
    from scripts.research.series.make import make

    try:
        sys.stdout.write(make(options))
    except DrValidateError as error:
        sys.exit(str(error))
    used = resource.getrusage(resource.RUSAGE_SELF)
    sys.stderr.write(f"{used.ru_utime + used.ru_stime:.0f} CPU seconds\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts = parser.add_argument_group("the collection")
    texts.add_argument("--packages", nargs="+", required=True, help="installed ones, folders, wheels, sdists")
    texts.add_argument("--documents", type=int, default=30_000, help="drawn from all (default: %(default)s)")
    texts.add_argument("--queries", type=int, default=300, help="of the test (default: %(default)s)")
    texts.add_argument("--draw-seed", type=int, default=0, help="of documents and test queries")
    texts.add_argument("--signatures", action="store_true", help="documents begin with the signature of what they describe")
    training = parser.add_argument_group("the series (defaults are those of the model)")
    training.add_argument("--model", choices=list(DEFAULTS), default="minilm3")
    training.add_argument("--base", type=Path, required=True, help="folder of all-MiniLM-L6-v2, or of another BERT")
    training.add_argument("--seed", type=int, default=0, help="of noise and batches")
    training.add_argument("--steps", type=_numbers, help="at which a checkpoint is written, with commas between")
    training.add_argument("--noise", type=float, help="in standard deviations of each matrix")
    training.add_argument("--learning-rate", type=float)
    training.add_argument("--batch-size", type=int)
    training.add_argument("--warmup-steps", type=int)
    training.add_argument("--query-length", type=int, default=24, help="tokens (default: %(default)s)")
    training.add_argument("--document-length", type=int, default=32, help="tokens (default: %(default)s)")
    how = parser.add_argument_group("what is written")
    how.add_argument("--out", type=Path, required=True, help="new folder for checkpoints/, beir/ and series.json")
    how.add_argument("--vectors", type=Path, help="folder for vectors of everything by every checkpoint, and coll.json")
    how.add_argument("--strong", action="store_true", help="another model, for pools: the base (static: the next seed's last)")
    how.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="to encode in")
    options = parser.parse_args(arguments)
    for name, value in DEFAULTS[options.model].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",") if part}))


if __name__ == "__main__":
    main()
