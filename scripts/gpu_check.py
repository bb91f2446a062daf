"""Whether dr_validate is right and fast on a GPU: six steps, each in a process of its own with its own limit of time.

    python scripts/gpu_check.py                        # at most 8 minutes on one GPU; writes scripts/GPU.md
    python scripts/gpu_check.py --device cpu --tiny    # the same code on small inputs; writes nothing

Every result is one line of JSON, written as it is known; a step that fails, or is out of time, does not stop the next. Exit
code 1 if one failed. Models are random and made here: nothing is downloaded.
"""

import argparse
import contextlib
import functools
import inspect
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
WORDS = [f"w{number}" for number in range(5000)]
STATED = ("encoder.pooling=mean", "encoder.normalize=true")


@dataclass(frozen=True)
class Check:
    """What all steps know. `tiny`: seconds on a CPU, to try the script itself."""

    device: str
    tiny: bool
    folder: Path

    def size(self, real: int, tiny: int) -> int:
        return tiny if self.tiny else real

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


def say(step: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"step": step, **facts}) + "\n")
    sys.stdout.flush()


def seconds(check: Check, work: Callable[[], Any], times: int = 3) -> float:
    """Of one call, the device included; the first is not counted."""
    import torch

    def wait() -> None:
        if check.on_gpu:
            torch.cuda.synchronize()

    work()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - began) / times


def versions(check: Check) -> None:
    """Step 1: what is installed, and what the device can do."""
    import importlib.metadata

    import torch
    from torch.nn.attention.varlen import varlen_attn

    names = ["transformers", "sentence-transformers", "tokenizers", "pyarrow", "faiss-cpu", "faiss-gpu", "numpy", "dr_validate"]
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    card = torch.cuda.get_device_name() if check.on_gpu else platform.processor() or "CPU"
    say("versions", card=card, python=platform.python_version(), torch=torch.__version__, **found)
    say("versions", varlen_attn=str(inspect.signature(varlen_attn)))
    number = check.size(8192, 128)
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        left = torch.ones(number, number, dtype=dtype, device=check.device)
        say("versions", rate=name, tflops=2 * number**3 / seconds(check, functools.partial(torch.matmul, left, left)) / 1e12)
    torch.set_float32_matmul_precision("highest")
    rows, columns = check.size(6980, 64), check.size(8192, 64)
    left, right = (torch.ones(count, 768, dtype=torch.float64, device=check.device) for count in (rows, columns))
    say("versions", rate="fp64", tflops=2 * rows * columns * 768 / seconds(check, lambda: left @ right.T) / 1e12)


def model_folder(check: Check, kind: str, *, base: bool = False) -> Path:
    """A random model with a word tokenizer; `base`: of BERT-base's size."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = check.folder / f"{kind}{'-base' if base else ''}" / "checkpoint-1"
    if (folder / "config.json").is_file():
        return folder
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    wrap: Any = transformers.PreTrainedTokenizerFast
    named = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokens = {"model_max_length": 128, "model_input_names": ["input_ids", "attention_mask"], **named}
    wrap(tokenizer_object=core, **tokens).save_pretrained(str(folder))
    width, layers, heads = (768, 12, 12) if base and not check.tiny else (check.size(256, 32), 2, check.size(4, 2))
    common: dict[str, Any] = {"vocab_size": len(special) + len(WORDS), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": 4 * width, "max_position_embeddings": 514}
    if kind == "DistilBert":
        sizes = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": 4 * width, "max_position_embeddings": 514}
    if kind == "Qwen3":
        sizes |= {"num_key_value_heads": heads // 2, "head_dim": width // heads}
    if kind == "ModernBert":
        sizes |= {"local_attention": 16, "global_attn_every_n_layers": 2}
        common |= {"cls_token_id": 0, "sep_token_id": 2}
    torch.manual_seed(7)
    family: Any = transformers.AutoModel
    model = family.from_config(getattr(transformers, f"{kind}Config")(**common, **sizes))
    model.save_pretrained(str(folder))
    return folder


def texts_of(number: int, seed: int = 1, mean: int = 60) -> list[str]:
    """About as long as MS MARCO's passages: 5 to 126 words."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.gamma(5, mean / 5, number), 5, 126).astype(int)
    return [" ".join(WORDS[word] for word in rng.integers(0, len(WORDS), length)) for length in lengths]


def overlap(found: Any, expected: Any, top: int = 10) -> float:
    """Mean share of the first documents of `expected` that `found` has first, each vector being a query as well."""
    lists = [np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :top] for vectors in (found, expected)]
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(*lists, strict=True)]))


def one_at_a_time(folder: Path, texts: list[str], pooling: str, device: str) -> Any:
    """Plain transformers in float32."""
    import torch
    import transformers

    load: Any = transformers.AutoModel.from_pretrained
    model = load(str(folder), dtype=torch.float32).to(device).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder))
    vectors = []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([tokenizer(text, truncation=True)["input_ids"]], device=device)
            hidden = model(input_ids=ids).last_hidden_state[0]
            vector = hidden[-1] if pooling == "last" else hidden.mean(dim=0)
            vectors.append(torch.nn.functional.normalize(vector, dim=0))
    return torch.stack(vectors).cpu().numpy()


def architectures(check: Check) -> None:
    """Step 2: vectors against plain transformers, one text at a time, and the way that was taken."""
    from dr_validate.encoder.auto import AutoEncoder

    texts = texts_of(check.size(256, 12))
    for kind in ("Bert", "Roberta", "DistilBert", "MPNet", "ModernBert", "Qwen3"):
        pooling: Any = "last" if kind == "Qwen3" else "mean"
        folder = model_folder(check, kind)
        expected = one_at_a_time(folder, texts, pooling, check.device)
        for dtype in ("bfloat16", "float16", "float32"):
            options: Any = {"pooling": pooling, "normalize": True, "dtype": dtype}
            encoder = AutoEncoder(**options)
            try:
                with encoder.load(folder, check.device) as model:
                    block = model.tokenizer("document").tokenize(texts)
                    found: Any = model.encode(block, "document")
                    found, way = found.cpu().numpy(), model.contract["batches"]
            except Exception as error:  # told, and the next is tried
                say("architectures", model=kind, dtype=dtype, error=f"{type(error).__name__}: {error}")
                continue
            difference, ten = float(np.abs(found - expected).max()), overlap(found, expected)
            right = bool(difference < (1e-3 if dtype == "float32" else 0.1))
            say("architectures", model=kind, dtype=dtype, way=way, largest_difference=difference, top_10=ten, right=right)


def ranking(check: Check) -> None:
    """Step 3: every index on every device gives the ranking of torch on the CPU, among duplicates and near-ties."""
    from dr_validate.index.factory import FactoryIndex
    from dr_validate.index.flat import FlatIndex
    from dr_validate.index.torch import TorchIndex

    rng = np.random.default_rng(3)
    number, queries_number, dim = check.size(100_000, 6_000), check.size(1_000, 40), check.size(768, 32)
    documents = rng.standard_normal((number, dim)).astype(np.float32)
    documents[number // 2 : number // 2 + number // 10] = documents[: number // 10]  # twice in the corpus
    noise = rng.standard_normal((number // 10, dim)).astype(np.float32) * np.float32(1e-7)
    documents[-(number // 10) :] = documents[: number // 10] + noise
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = documents[:queries_number] + 0.1 * rng.standard_normal((queries_number, dim)).astype(np.float32)
    ties = rng.permutation(number)

    def rank(index: Any, device: str, top_k: int) -> Any:
        search = index.open(queries, top_k, ties, device)
        for start in range(0, number, 8192):
            search.add(documents[start : start + 8192], np.arange(start, min(start + 8192, number)))
        return search.top()

    for top_k in (100, 1000):
        expected = rank(TorchIndex(), "cpu", top_k)
        for name, index in (("torch", TorchIndex()), ("flat", FlatIndex()), ("factory", FactoryIndex(spec="Flat"))):
            for device in dict.fromkeys(["cpu", check.device]):
                try:
                    began = time.perf_counter()
                    found = rank(index, device, top_k)
                    took = time.perf_counter() - began
                except Exception as error:  # told, and the next is tried
                    say("ranking", index=name, device=device, top_k=top_k, error=f"{type(error).__name__}: {error}")
                    continue
                other = found.documents != expected.documents
                apart = np.abs(found.scores - expected.scores)[other].max(initial=0.0)
                facts = {"places_that_differ": int(other.sum()), "largest_swap": float(apart), "seconds": took}
                say("ranking", index=name, device=device, top_k=top_k, **facts, right=bool(apart <= 1e-6))


def memory(check: Check) -> None:
    """Step 4: too little memory for a batch halves it; too little for the weights fails the checkpoint, once and clearly."""
    import torch

    from dr_validate.encoder.auto import AutoEncoder
    from dr_validate.errors import CheckpointError

    if not check.on_gpu:
        say("memory", left_out="only a GPU's memory can be limited for torch")
        return
    folder, texts = model_folder(check, "Bert", base=True), texts_of(4096)
    dtype: Any = "bfloat16"
    total = torch.cuda.get_device_properties(0).total_memory

    def encoded(max_tokens: int) -> Any:
        encoder = AutoEncoder(pooling="mean", normalize=True, dtype=dtype, max_tokens_per_batch=max_tokens)
        with encoder.load(folder, check.device) as model:
            vectors: Any = model.encode(model.tokenizer("document").tokenize(texts), "document")
            return vectors.cpu().numpy()

    expected = encoded(16384)
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2.0 * 2**30 / total))
    found = encoded(1 << 19)
    say("memory", halved_difference=float(np.abs(found - expected).max()), right=bool(np.abs(found - expected).max() < 0.05))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(64 * 2**20 / total)
    try:
        encoded(16384)
    except CheckpointError as error:
        say("memory", weights=str(error), right="no memory" in str(error))
    else:
        say("memory", weights="they fitted", right=False)


def speed(check: Check) -> None:
    """Step 5: passages a second of BERT-base at MS MARCO's lengths, by tokens a batch, packed and padded, and one profile."""
    import torch

    from dr_validate.encoder.auto import AutoEncoder

    folder, number = model_folder(check, "Bert", base=True), check.size(8192, 48)
    texts = texts_of(number)
    parameters = check.size(12, 2) * 12 * check.size(768, 32) ** 2
    for dtype, tokens in [
        *(("bfloat16", check.size(2**power, 2 ** (power - 6))) for power in (14, 15, 16, 17)),
        ("float32", check.size(2**15, 2**9)),
    ]:
        options: Any = {"pooling": "mean", "normalize": True, "dtype": dtype, "max_tokens_per_batch": tokens}
        with AutoEncoder(**options).load(folder, check.device) as model:
            block = model.tokenizer("document").tokenize(texts)
            took = seconds(check, functools.partial(model.encode, block, "document"), check.size(2, 1))
            rate = 2 * parameters * len(block.ids) / took / 1e12
            facts = {"dtype": dtype, "tokens_a_batch": tokens, "way": model.contract["batches"]}
            say("speed", **facts, passages_a_second=number / took, tflops_of_products=rate)
            if dtype == "bfloat16" and tokens == check.size(2**15, 2**9):
                from torch.profiler import ProfilerActivity, profile

                kinds = [ProfilerActivity.CUDA] if check.on_gpu else [ProfilerActivity.CPU]
                with profile(activities=kinds) as found:
                    model.encode(block, "document")
                    if check.on_gpu:
                        torch.cuda.synchronize()
                say("speed", profile=by_kind(found, "self_device_time_total" if check.on_gpu else "self_cpu_time_total"))


def by_kind(found: Any, field: str) -> dict[str, float]:
    """Shares of the time of kernels: products, attention, all else."""
    spent = {"products": 0.0, "attention": 0.0, "else": 0.0}
    for event in found.key_averages():
        name = event.key.lower()
        kind = "attention" if "flash" in name or "attention" in name else "else"
        if any(word in name for word in ("gemm", "cutlass", "addmm", "nvjet", "mm_", "linear")) and kind == "else":
            kind = "products"
        spent[kind] += float(getattr(event, field, 0.0))
    whole = sum(spent.values()) or 1.0
    return {kind: value / whole for kind, value in spent.items()}


class Busy:
    """Share of the time in which the GPU did something, by nvidia-smi every half second; None where there is none."""

    def __enter__(self) -> "Busy":
        self.seen: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._over.wait(0.5):
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                self.seen.append(int(subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.split()[0]))


def whole(check: Check) -> None:
    """Step 6: the command on a generated collection; then killed in the middle, and the same ranking after all."""
    number, queries = check.size(88_000, 400), check.size(6_980, 20)
    source = model_folder(check, "Bert", base=True).parent
    collection = check.folder / "collection"
    (collection / "qrels").mkdir(parents=True)
    texts, questions = texts_of(number, 5), texts_of(queries, 6, 8)
    for name, letter, rows in (("corpus", "d", texts), ("queries", "q", questions)):
        lines = [json.dumps({"_id": f"{letter}{n}", "title": "", "text": text}) for n, text in enumerate(rows)]
        (collection / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [f"q{n}\td{n}\t1" for n in range(queries)]
    (collection / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n", encoding="utf-8")

    def command(state: str) -> list[str]:
        return [
            *(sys.executable, "-m", "dr_validate", f"source.path={source}", "dataset=beir", f"dataset.path={collection}"),
            *("sampler=full", "tracker=none", "watch.mode=once", f"device={check.device}", "encoder.dtype=bfloat16"),
            *("write_ranking=true", f"state_dir={check.folder / state}", "engine.save_every_s=1", *STATED),
            *(("engine.slice_documents=32",) if check.tiny else ()),
        ]

    def result(state: str) -> tuple[Mapping[str, Any], str]:
        (ranked,) = (check.folder / state / "rankings").rglob("*.trec")
        return json.loads((check.folder / state / "reports.jsonl").read_text().splitlines()[-1]), ranked.read_text()

    with Busy() as busy:
        subprocess.run(command("undisturbed"), check=True, stdout=subprocess.DEVNULL)
    report, expected = result("undisturbed")
    say("whole", seconds=report["seconds"], gpu_busy=float(np.mean(busy.seen)) / 100 if busy.seen else None)
    victim = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, start_new_session=True)
    while victim.poll() is None and not list((check.folder / "killed").glob("progress/*.npz")):
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    was_in_the_middle = not (check.folder / "killed" / "rankings").is_dir()
    subprocess.run(command("killed"), check=True, stdout=subprocess.DEVNULL)
    report, ranked = result("killed")
    again = report["corpus"]["encoded_now"]
    say("whole", killed_in_the_middle=was_in_the_middle, encoded_after_the_kill=again, of=number, right=ranked == expected)


STEPS: Mapping[str, tuple[Callable[[Check], None], int]] = {
    "versions": (versions, 20 + 20),  # seconds, and some to start in
    "architectures": (architectures, 60 + 20),
    "ranking": (ranking, 60 + 20),
    "memory": (memory, 30 + 20),
    "speed": (speed, 120),
    "whole": (whole, 110),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="small inputs, no limits of time, no table")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # the folder, of a process that does one step
    options = parser.parse_args()
    if options.inside:
        STEPS[options.steps[0]][0](Check(options.device, options.tiny, options.inside))
        return
    with tempfile.TemporaryDirectory() as name:
        lines = [line for step in options.steps for line in run_step(step, options, Path(name))]
    if options.device.startswith("cuda") and not options.tiny:
        (HERE / "GPU.md").write_text(table(lines), encoding="utf-8")
    sys.exit(any("error" in line or line.get("right") is False for line in lines))


def run_step(step: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What a step said, passed on as it came; its end is its own if it comes within its time."""
    command = [sys.executable, __file__, "--device", options.device, "--steps", step, "--inside", str(folder)]
    command += ["--tiny"] if options.tiny else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    limit = threading.Timer(3600 if options.tiny else STEPS[step][1], lambda: os.killpg(process.pid, signal.SIGKILL))
    limit.start()
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        with contextlib.suppress(ValueError):  # of a library
            lines.append(json.loads(line))
            say(**lines[-1])
    code = process.wait()
    limit.cancel()
    if code:
        lines.append({"step": step, "error": f"ended with {code}; -9 is out of time or memory"})
        say(**lines[-1])
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """One markdown table, under the name of the card."""
    card = next((line["card"] for line in lines if "card" in line), "an unknown GPU")
    rows = [f"| {line['step']} | {_words(line)} |" for line in lines]
    head = [f"# scripts/gpu_check.py on {card}", "", "| step | found |", "|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def _words(line: Mapping[str, Any]) -> str:
    facts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in line.items() if key != "step"}
    return "; ".join(f"{key} {value}" for key, value in facts.items()).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
