"""What validation costs a training: none, asynchronous, and sentence-transformers' own evaluator, which blocks.

    python scripts/research/beside_training.py --rounds 3

The same training of sentence-transformers' trainer, in a process of its own each time, in as many orders as there are rounds:
a few layers of MiniLM on docstrings of the standard library, validated on all of --documents at the same steps. The training
has one core, the watcher and its worker another one; the blocking evaluator has that of the training. On a machine that
others use, read CPU seconds and ratios.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "alone": "no validation",
    "asynchronous": "`AsyncValidation`",
    "blocking": "sentence-transformers' evaluator",
}
METRIC, THEIR_METRIC = "ndcg@10", "eval_docs_cosine_ndcg@10"
MAX_LENGTH = 64  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="orders (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="of the training (default: %(default)s)")
    parser.add_argument("--every", type=int, default=20, help="steps between validations (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs in a step (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=2000, help="of the collection (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="of MiniLM, the first ones (default: %(default)s)")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)  # one training, in this process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(train(options.kind, options.folder, options)))
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), options)
        rounds = [run_round(number, Path(name)) for number in range(options.rounds)]
    print(table(rounds))


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """A collection of --documents in BEIR's layout, and the weights that every training starts with."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from dr_validate.dataset.pydoc import PydocDataset
    from scripts.train_reference import model_folder

    (folder / "docs" / "qrels").mkdir(parents=True)
    PydocDataset().open(folder / "cache")
    (written,) = (folder / "cache").glob("*/corpus.jsonl")
    (folder / "docs" / "queries.jsonl").write_bytes((written.parent / "queries.jsonl").read_bytes())
    judgements = (written.parent / "qrels.tsv").read_text(encoding="utf-8")
    (folder / "docs" / "qrels" / "test.tsv").write_text(judgements, encoding="utf-8")
    judged = {line.split("\t")[1] for line in judgements.splitlines()[1:]}
    lines = written.read_text(encoding="utf-8").splitlines()
    kept = sorted(lines, key=lambda line: json.loads(line)["_id"] not in judged)[: options.documents]
    (folder / "docs" / "corpus.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")

    transformer = Transformer(model_folder("minilm"), max_seq_length=MAX_LENGTH)
    bert: Any = transformer.auto_model
    bert.encoder.layer = bert.encoder.layer[: options.layers]
    bert.config.num_hidden_layers = len(bert.encoder.layer)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "start"))


def run_round(number: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What each kind measured; a round begins with another kind than the one before."""
    found = {}
    for place in range(len(KINDS)):
        kind = list(KINDS)[(number + place) % len(KINDS)]
        command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind, "--folder", str(folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stderr}\n{kind}: exit status {done.returncode}")
        found[kind] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({"round": number, "kind": kind, **found[kind], "losses": "..."}), file=sys.stderr, flush=True)
    return found


def train(kind: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and results of one training, on one core."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from dr_validate.dataset.pydoc import training_pairs

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    torch.set_num_threads(1)
    losses: list[float] = []

    class Recorded(MultipleNegativesRankingLoss):  # type: ignore[misc]  # sentence-transformers is untyped here
        def forward(self, *parts: Any, **more: Any) -> Any:
            loss = super().forward(*parts, **more)
            losses.append(float(loss.detach()))
            return loss

    model = SentenceTransformer(str(folder / "start"), device="cpu")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        given: dict[str, Any] = {"max_steps": options.steps, "save_steps": options.every, "seed": 13, "use_cpu": True}
        given |= {"per_device_train_batch_size": options.batch, "report_to": "none", "disable_tqdm": True}
        given |= {"learning_rate": 1e-4, "dataloader_pin_memory": False, "logging_steps": options.every}
        if kind != "alone":
            given |= {"eval_strategy": "steps", "eval_steps": options.every, "metric_for_best_model": THEIR_METRIC}
        rows = [{"anchor": query, "positive": text} for query, text in training_pairs(13)]
        timer = timer_of()
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(output_dir=out, **given),
            train_dataset=Dataset.from_list(rows),
            loss=Recorded(model),
            evaluator=evaluator(folder / "docs") if kind != "alone" else None,
            callbacks=[timer],
        )
        if kind == "asynchronous":
            attach(trainer, folder / "docs", cores[-1])
        began, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended: dict[str, Any] = next((row for row in trainer.state.log_history if "validation_blocked_s" in row), {})
    blocked_s = float(ended.get("validation_blocked_s", sum(timer.delays_s)))  # the evaluator's delays are its own seconds
    return {
        "wall_s": wall_s,
        "step_s": statistics.median(timer.steps_s),
        "blocked_s": blocked_s,
        "waited_s": float(ended.get("validation_waited_s", 0.0)),
        "delays_s": timer.delays_s,
        "cpu_s": cpu_s,
        "beside_cpu_s": used.ru_utime + used.ru_stime,
        "values": {f"{row['step']}": row[THEIR_METRIC] for row in trainer.state.log_history if THEIR_METRIC in row},
        "losses": [loss.hex() for loss in losses],
    }


def timer_of() -> Any:
    """A callback that measures the seconds of each step, and from a step's end to its result."""
    import transformers

    class Timer(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.steps_s: list[float] = []
            self.delays_s: list[float] = []
            self.ends: dict[int, float] = {}

        def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            self.ends[state.global_step] = now = time.perf_counter()
            self.steps_s.append(now - self.began)

        def on_evaluate(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            self.delays_s.append(time.perf_counter() - self.ends[state.global_step])

    return Timer()


def evaluator(collection: Path) -> Any:
    """sentence-transformers' own, of the whole collection."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    def texts(name: str) -> dict[str, str]:
        lines = (collection / name).read_text(encoding="utf-8").splitlines()
        return {row["_id"]: row["text"] for row in map(json.loads, lines)}

    judged: dict[str, set[str]] = {}
    for line in (collection / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, _ = line.split("\t")
        judged.setdefault(query, set()).add(document)
    return InformationRetrievalEvaluator(
        texts("queries.jsonl"), texts("corpus.jsonl"), judged, name="docs", ndcg_at_k=[10], write_csv=False
    )


def attach(trainer: Any, collection: Path, core: int) -> None:
    """Asynchronous validation on a core of its own."""
    import transformers

    from dr_validate.integrations.transformers import AsyncValidation

    overrides = ["dataset=beir", f"dataset.path={collection}", "sampler=full", "tracker=none", f"metrics=[{METRIC}]"]
    validation = AsyncValidation([*overrides, "device=cpu", "fidelity.baseline=off"], backpressure="all").attach(trainer)

    class Place(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            assert validation.watcher_pid is not None
            os.sched_setaffinity(validation.watcher_pid, {core})  # and the worker that it starts

    trainer.add_callback(Place())


def table(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Medians over the rounds in Markdown; ratios are to the training without validation of the same round."""
    head = ["", "wall s to the end", "ratio", "s a step", "ratio", "blocked s", "waited at the end s"]
    head += ["s from a step to its result", "CPU s of the training", "CPU s beside it", "losses as without"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for kind, name in KINDS.items():
        mine = [found[kind] for found in rounds]

        def median(key: str, of: Sequence[Mapping[str, Any]] = mine) -> float:
            return statistics.median(float(one[key]) for one in of)

        def ratio(key: str, kind: str = kind) -> float:
            return statistics.median(float(found[kind][key]) / float(found["alone"][key]) for found in rounds)

        delays = [delay for one in mine for delay in one["delays_s"]]
        told = f"{statistics.median(delays):.1f} ({min(delays):.1f} to {max(delays):.1f})" if delays else ""
        equal = sum(found[kind]["losses"] == found["alone"]["losses"] for found in rounds)
        cells = [name, f"{median('wall_s'):.1f}", f"{ratio('wall_s'):.2f}", f"{median('step_s'):.3f}", f"{ratio('step_s'):.2f}"]
        at_steps = statistics.median(float(one["blocked_s"]) - float(one["waited_s"]) for one in mine)
        cells += [
            f"{at_steps:.2f}",
            f"{median('waited_s'):.1f}",
            told,
            f"{median('cpu_s'):.1f}",
            f"{median('beside_cpu_s'):.1f}",
        ]
        lines.append("| " + " | ".join([*cells, f"{equal} of {len(rounds)}"]) + " |")
    differences = [
        abs(value - found["blocking"]["values"][step])
        for found in rounds
        for step, value in found["asynchronous"]["values"].items()
        if step in found["blocking"]["values"] and _same_until(found, int(step))
    ]
    said = f"; largest difference of the two values {max(differences):.2g}" if differences else ""
    checkpoints = f"{len(differences)} checkpoints that both validations met with equal losses until then"
    return "\n".join([*lines, "", f"{METRIC} of {checkpoints}{said}."])


def _same_until(found: Mapping[str, Mapping[str, Any]], step: int) -> bool:
    return bool(found["asynchronous"]["losses"][:step] == found["blocking"]["losses"][:step])


if __name__ == "__main__":
    main()
