"""Whether dr_validate is right and fast on a GPU: seven steps, each in a process of its own with its own limit of time.

    python scripts/gpu_check.py                        # at most 10 minutes on one GPU; writes scripts/GPU.md
    python scripts/gpu_check.py --device cpu --tiny    # the same code on small inputs; writes nothing

Every result is one line of JSON, written as it is known; a step that fails, or is out of time, does not stop the next. Exit
code 1 if one failed. Models are random and made here: nothing is downloaded.
"""

import argparse
import contextlib
import functools
import inspect
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
WORDS = [f"w{number}" for number in range(5000)]
MOST_LETTERS = 160  # of one value in the table
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
    with contextlib.suppress(ImportError, RuntimeError, OSError):  # faiss-gpu raises these where a library of CUDA is missing
        import faiss

        found["faiss"] = f"{faiss.__version__}, {'GPU' if hasattr(faiss, 'StandardGpuResources') else 'CPU'} build"
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
    mpnet = model_folder(check, "MPNet", base=True)  # of the same size, and always padded
    for path, dtype, tokens in [
        *((folder, "bfloat16", check.size(2**power, 2 ** (power - 6))) for power in (14, 15, 16, 17)),
        (mpnet, "bfloat16", check.size(2**15, 2**9)),
        (folder, "float32", check.size(2**15, 2**9)),
    ]:
        options: Any = {"pooling": "mean", "normalize": True, "dtype": dtype, "max_tokens_per_batch": tokens}
        with AutoEncoder(**options).load(path, check.device) as model:
            block = model.tokenizer("document").tokenize(texts)
            took = seconds(check, functools.partial(model.encode, block, "document"), check.size(2, 1))
            rate = 2 * parameters * len(block.ids) / took / 1e12
            facts = {"model": path.parent.name, "dtype": dtype, "tokens_a_batch": tokens, "way": model.contract["batches"]}
            say("speed", **facts, passages_a_second=number / took, tflops_of_products=rate)
            if path is folder and dtype == "bfloat16" and tokens == check.size(2**15, 2**9):
                from torch.profiler import ProfilerActivity, profile

                kinds = [ProfilerActivity.CUDA] if check.on_gpu else [ProfilerActivity.CPU]
                with profile(activities=kinds) as found:
                    model.encode(block, "document")
                    if check.on_gpu:
                        torch.cuda.synchronize()
                say("speed", profile=by_kind(found, "self_device_time_total" if check.on_gpu else "self_cpu_time_total"))
    beside_sentence_transformers(check, folder, texts)


def beside_sentence_transformers(check: Check, folder: Path, texts: list[str]) -> None:
    """Texts to vectors in the memory of the host, tokenizing included, here and there; and how far the vectors are apart."""
    import torch
    from sentence_transformers import SentenceTransformer

    from dr_validate.encoder.auto import AutoEncoder

    dtype: Any = "bfloat16"
    found: dict[str, Any] = {}
    theirs = SentenceTransformer(str(folder), device=check.device, model_kwargs={"dtype": torch.bfloat16})  # mean pooling

    def their_vectors() -> None:
        found["theirs"] = theirs.encode(texts, batch_size=128, normalize_embeddings=True, show_progress_bar=False)

    with AutoEncoder(pooling="mean", normalize=True, dtype=dtype).load(folder, check.device) as model:

        def our_vectors() -> None:
            vectors = model.encode(model.tokenizer("document").tokenize(texts), "document")
            found["ours"] = torch.as_tensor(vectors).cpu().numpy()

        rates = [len(texts) / seconds(check, work, check.size(2, 1)) for work in (our_vectors, their_vectors)]
    facts = {"passages_a_second": rates[0], "sentence_transformers": rates[1], "times_as_fast": rates[0] / rates[1]}
    difference = float(np.abs(found["ours"] - np.asarray(found["theirs"], dtype=np.float32)).max())
    say("speed", texts_to_vectors="this project, tokenizing included", **facts, largest_difference=difference)


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
        self.seen: list[tuple[float, int]] = []  # seconds since 1970, percent
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def share(self, start: float = 0.0, end: float = np.inf) -> float | None:
        seen = [percent for at, percent in self.seen if start <= at <= end]
        return float(np.mean(seen)) / 100 if seen else None

    def _watch(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._over.wait(0.5):
            with contextlib.suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
                percent = int(subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.split()[0])
                self.seen.append((time.time(), percent))


def beir(folder: Path, texts: list[str], questions: list[str]) -> None:
    """A collection in which text n answers question n."""
    (folder / "qrels").mkdir(parents=True)
    for name, letter, rows in (("corpus", "d", texts), ("queries", "q", questions)):
        lines = [json.dumps({"_id": f"{letter}{n}", "title": "", "text": text}) for n, text in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [f"q{n}\td{n}\t1" for n in range(len(questions))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n", encoding="utf-8")


def alone(check: Check, collection: Path, checkpoint: Path) -> dict[str, float]:
    """Seconds that the device needs for the documents of a collection when nothing else is done, tokens being there."""
    import torch

    from dr_validate.encoder.auto import AutoEncoder
    from dr_validate.index.flat import FlatIndex
    from dr_validate.index.torch import TorchIndex

    texts = [json.loads(line)["text"] for line in (collection / "corpus.jsonl").read_text().splitlines()]
    dtype: Any = "bfloat16"
    with AutoEncoder(pooling="mean", normalize=True, dtype=dtype).load(checkpoint, check.device) as model:
        blocks = [model.tokenizer("document").tokenize(texts[start : start + 8192]) for start in range(0, len(texts), 8192)]
        queries = torch.rand(check.size(6980, 20), model.dim, device=check.device)
        vectors = [torch.as_tensor(model.encode(block, "document")) for block in blocks]

        def encode() -> None:
            for block in blocks:
                model.encode(block, "document")

        def search(index: Any) -> None:
            opened = index.open(queries, 100, np.arange(len(texts)), check.device)
            for number, block in enumerate(vectors):
                opened.add(block, np.arange(number * 8192, number * 8192 + len(block)))

        spent = {
            name: seconds(check, functools.partial(search, index), 1)
            for name, index in (("torch", TorchIndex()), ("flat", FlatIndex()))
        }
        return {"encode": seconds(check, encode, 1), **spent}


def moments(reports: list[Mapping[str, Any]]) -> list[float]:
    """When each Report was made, seconds since 1970, to the second."""
    return [datetime.fromisoformat(report["at"]).timestamp() for report in reports]


def whole(check: Check) -> None:
    """Step 6: the command on a generated collection; then killed in the middle, and the same ranking after all."""
    from safetensors.torch import load_file, save_file

    number, queries, last = check.size(176_000, 400), check.size(6_980, 20), check.size(9, 3)
    source = check.folder / "trained"
    for step in range(1, last + 1):
        shutil.copytree(model_folder(check, "Bert", base=True), source / f"checkpoint-{step}")
        file = source / f"checkpoint-{step}" / "model.safetensors"
        save_file({name: one * (1 + step / 100) for name, one in load_file(file).items()}, file, {"format": "pt"})
    collection = check.folder / "collection"
    beir(collection, texts_of(number, 5), texts_of(queries, 6, 8))

    def command(state: str, *more: str, path: Path = source) -> list[str]:
        named = [f"source.path={path}", "source.name=whole", "dataset=beir", f"dataset.path={collection}"]
        how = ["sampler=full", "tracker=none", "watch.mode=once", f"device={check.device}", "encoder.dtype=bfloat16"]
        how += [f"state_dir={check.folder / state}", *STATED, *(["engine.slice_documents=32"] if check.tiny else [])]
        return [sys.executable, "-m", "dr_validate", *named, *how, *more]

    def reports(state: str) -> list[Mapping[str, Any]]:
        return [json.loads(line) for line in (check.folder / state / "reports.jsonl").read_text().splitlines()]

    def rankings(state: str) -> list[bytes]:
        """What is kept of every full-corpus ranking: the documents, in order."""
        return [path.read_bytes() for path in sorted((check.folder / state / "baselines").rglob("*.npz"))]

    def run(state: str, *more: str) -> Mapping[str, Any]:
        """Seconds from Report to Report, and what the device was busy meanwhile, without the start and the last, after which
        no process has anything left to rank."""
        if (tokens := check.folder / "undisturbed" / "tokens").is_dir():  # to spare time: they are made beside the encoding
            shutil.copytree(tokens, check.folder / state / "tokens")
        with Busy() as busy:
            subprocess.run(command(state, *more), check=True, stdout=subprocess.DEVNULL)
        made = moments(reports(state))[1 : None if check.tiny else -1]
        each = (made[-1] - made[0]) / (len(made) - 1)
        return {"seconds_a_checkpoint": each, "of": len(made) - 1, "gpu_busy": busy.share(made[0], made[-1])}

    found = run("undisturbed")
    told = reports("undisturbed")
    say("whole", at_once=1, **found, documents=number, queries=queries)
    say("whole", first_checkpoint=told[0]["seconds"])
    say("whole", last_checkpoint=told[-1]["seconds"])
    say("whole", device_needs=alone(check, collection, source / f"checkpoint-{last}"))
    found = run("two", "watch.at_once=2")
    ahead = sum(bool(report["notes"].get("ranked_ahead")) for report in reports("two"))
    say("whole", at_once=2, **found, ranked_ahead=ahead, right=rankings("two") == rankings("undisturbed"))
    shutil.copytree(source / "checkpoint-1", check.folder / "one" / "checkpoint-1")
    only = command("killed", "engine.save_every_s=1", path=check.folder / "one")
    victim = subprocess.Popen(only, stdout=subprocess.DEVNULL, start_new_session=True)
    while victim.poll() is None and not list((check.folder / "killed").glob("progress/*.npz")):
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    was_in_the_middle = not rankings("killed")
    subprocess.run(only, check=True, stdout=subprocess.DEVNULL)
    again, right = reports("killed")[0]["corpus"]["encoded_now"], rankings("killed")[0] in rankings("undisturbed")
    say("whole", killed_in_the_middle=was_in_the_middle, encoded_after_the_kill=again, of=number, right=right)


def snapshots(check: Check) -> None:
    """Milliseconds on the training's thread for a snapshot and for a save; the snapshot holds the weights of its step."""
    import torch
    import transformers
    from safetensors.torch import load_file

    from dr_validate.integrations.publish import Snapshots

    path = model_folder(check, "Bert", base=True)
    load: Any = transformers.AutoModel.from_pretrained
    model, tokenizer = load(str(path)).to(check.device), transformers.AutoTokenizer.from_pretrained(str(path))
    taking = Snapshots(model, check.folder / "snapshots", tokenizer, {"pooling": "mean", "normalize": True})
    rows = tokenizer(texts_of(check.size(64, 4)), padding=True, return_tensors="pt").to(check.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    took: dict[str, list[float]] = {"snapshot": [], "save": []}
    right = True

    def learn() -> None:
        model(**rows).last_hidden_state.square().mean().backward()
        taking.before_weights_change()
        optimizer.step()
        optimizer.zero_grad()

    for step in range(1, check.size(8, 3)):
        learn()
        expected = {name: one.detach().clone() for name, one in model.state_dict().items()}
        if check.on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        taken = taking.take(step, wait=True)
        took["snapshot"].append(time.perf_counter() - began)
        learn()  # the weights change while the copy is under way
        assert taken is not None
        taken.written.wait()
        assert taken.folder is not None
        found = load_file(taken.folder / "model.safetensors")
        right &= bool(found) and all(torch.equal(one, expected[name].cpu()) for name, one in found.items())
        taking.remove(taken)
        began = time.perf_counter()
        model.save_pretrained(check.folder / "saved")
        took["save"].append(time.perf_counter() - began)
    facts = {f"{name}_ms": 1e3 * float(np.median(times)) for name, times in took.items()}
    parameters = sum(one.numel() for one in model.parameters())
    say("trainer", parameters=parameters, **facts, of="the training's thread, median", right=right)


def training(check: Check) -> None:
    """A transformers Trainer alone, with a watcher on the same device, and alone again: seconds a step and losses."""
    import torch
    import transformers

    from dr_validate.integrations.transformers import AsyncValidation

    logging.basicConfig(level=logging.ERROR)
    path, collection, number = model_folder(check, "Bert"), check.folder / "learned", check.size(2000, 40)
    texts, questions = texts_of(number, 8), [" ".join(text.split()[:6]) for text in texts_of(number, 8)]
    beir(collection, texts, questions[: check.size(200, 10)])
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(path))
    losses: list[float] = []

    def embed(model: Any, words: list[str]) -> Any:
        batch = tokenizer(words, padding=True, truncation=True, return_tensors="pt").to(check.device)
        return torch.nn.functional.normalize(model(**batch).last_hidden_state[:, 0], dim=-1)

    class Learner(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            queries, documents = embed(model, inputs["query"]), embed(model, inputs["text"])
            loss = torch.nn.functional.cross_entropy(queries @ documents.T / 0.05, torch.arange(len(queries)).to(check.device))
            losses.append(float(loss.detach()))
            return loss

    def run(name: str, validated: bool) -> tuple[list[float], float, dict[str, Any]]:
        losses.clear()
        load: Any = transformers.AutoModel.from_pretrained
        steps = check.size(300, 20)
        given: dict[str, Any] = {
            "max_steps": steps,
            "save_steps": steps // 5,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 5,
        }
        given |= {"per_device_train_batch_size": 8, "remove_unused_columns": False, "use_cpu": not check.on_gpu}
        if validated:
            given |= {"eval_strategy": "steps", "eval_steps": steps // 5, "metric_for_best_model": "mrr@10"}
        rows = [{"query": query, "text": text} for query, text in zip(questions, texts, strict=True)]
        learner = Learner(
            model=load(str(path)),
            args=transformers.TrainingArguments(output_dir=str(check.folder / name), **given),
            train_dataset=rows,
            eval_dataset=rows[:1],
            data_collator=lambda found: {side: [row[side] for row in found] for side in ("query", "text")},
            processing_class=tokenizer,
        )
        if validated:
            options = ["dataset=beir", f"dataset.path={collection}", "tracker=none", "metrics=[mrr@10]", *STATED]
            AsyncValidation([*options, "fidelity.baseline=off", f"device={check.device}"], backpressure="all").attach(learner)
        began = time.perf_counter()
        learner.train()
        took = time.perf_counter() - began
        history = learner.state.log_history
        told = {f"{row['step']}": row["eval_mrr@10"] for row in history if "eval_mrr@10" in row}
        ended = next((row for row in history if "validation_blocked_s" in row), {})
        waited, blocked = float(ended.get("validation_waited_s", 0)), float(ended.get("validation_blocked_s", 0))
        facts = {"blocked_s": blocked, "of_these_waited_at_the_end_s": waited, "results": told}
        return list(losses), (took - waited) / steps, facts

    first, alone, _ = run("alone", validated=False)
    losses_beside, beside, facts = run("validated", validated=True)
    again, alone_again, _ = run("again", validated=False)
    equal = {"losses_as_alone": losses_beside == first, "alone_twice_equal": again == first}
    times = {"alone_s_a_step": alone, "validated_s_a_step": beside, "alone_again_s_a_step": alone_again}
    say("trainer", **times, **facts, **equal, right=len(facts["results"]) == 5 and (losses_beside == first or again != first))


def trainer(check: Check) -> None:
    """Step 7: the trainer's side."""
    snapshots(check)
    training(check)


STEPS: Mapping[str, tuple[Callable[[Check], None], int]] = {
    "versions": (versions, 20 + 20),  # seconds, and some to start in
    "architectures": (architectures, 60 + 20),
    "ranking": (ranking, 60 + 20),
    "memory": (memory, 30 + 20),
    "speed": (speed, 120),
    "whole": (whole, 270),
    "trainer": (trainer, 90),
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
    facts = "; ".join(f"{key} {_short(value)}" for key, value in line.items() if key != "step")
    return facts.replace("|", "\\|").replace("\n", " ")


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:MOST_LETTERS]


if __name__ == "__main__":
    main()
