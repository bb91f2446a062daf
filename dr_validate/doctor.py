"""`task=doctor`: look at everything that a long run will need, before it is long. Each line: what was found, or the way out."""

import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import Run, build, metrics_of
from dr_validate.devices import Device
from dr_validate.errors import DrValidateError, SetupError
from dr_validate.summary import new_console
from dr_validate.values import Checkpoint

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "wandb", "hydra-core", "ranx", "datasets", "pyarrow")
LOW_ON_SPACE_GIB = 5.0


def examine(config: Mapping[str, Any]) -> int:
    """Print one line per check. Returns the exit code: 0, or 2 if anything would stop a run."""
    run = build(config)
    console = new_console()
    checks: dict[str, Callable[[Run], str]] = {
        "packages": _packages,
        "device": _device,
        "search": _search,
        "disk": _disk,
        "tracker": _tracker,
        "source": _source,
        "encoder": _encoder,
        "dataset": _dataset,
    }
    wrong = 0
    for name, check in checks.items():
        try:
            console.print(f"[green]ok[/]       {name:9}", check(run), highlight=False, soft_wrap=True)
        except (DrValidateError, OSError) as error:
            wrong += 1
            console.print(f"[red]problem[/]  {name:9}", str(error), highlight=False, soft_wrap=True, markup=True)
    return 2 if wrong else 0


def _packages(run: Run) -> str:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise SetupError(f"missing: {', '.join(missing)}; install with pip install {' '.join(missing)}")
    return ", ".join(found)


def _device(run: Run) -> str:
    from dr_validate.devices import resolve_devices

    return "; ".join(_one_device(device) for device in resolve_devices(run.settings.device))


def _one_device(device: Device) -> str:
    if not device.place.startswith("cuda"):
        name = device.name if device.name.startswith(device.place) else f"{device.place} (device={device.name})"
        return f"{name}, {device.threads} thread{'s' if device.threads != 1 else ''}"
    import torch

    free, total = torch.cuda.mem_get_info(device.place)
    return f"{device.name}, {torch.cuda.get_device_name(device.place)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _search(run: Run) -> str:
    name = type(run.index).__module__.rpartition(".")[2]
    if name != "torch" and importlib.util.find_spec("faiss") is None:
        raise SetupError("faiss is not installed; pip install 'dr_validate[cpu]' or 'dr_validate[gpu]', or set index=torch")
    return f"index={name}"


def _disk(run: Run) -> str:
    state_dir = run.settings.state_dir
    state_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=state_dir) as probe:
        probe.write(b"x" * 4096)
    free = shutil.disk_usage(state_dir).free / 2**30
    if free < LOW_ON_SPACE_GIB:
        raise SetupError(f"state_dir {state_dir}: {free:.1f} GiB free; checkpoints are copied there, free some space")
    return f"{state_dir}: writable, {free:.0f} GiB free; kept vectors: {run.store.describe_vectors(state_dir)}"


def _tracker(run: Run) -> str:
    def checkpoints() -> Sequence[Checkpoint]:
        return run.source.list(run.settings.state_dir).checkpoints

    return str(run.tracker.examine(checkpoints, run.source.training_run))


def _source(run: Run) -> str:
    listing = run.source.list(run.settings.state_dir)
    lines = [f"{len(listing.checkpoints)} checkpoints, {len(listing.incomplete)} incomplete"]
    lines += [f"{part.name}: {part.lacks}" for part in listing.incomplete]
    return "; ".join(lines)


def _encoder(run: Run) -> str:
    """Loads the latest checkpoint, where it lies on this machine: what it lacks (a pooling, say) would fail every one."""
    found = run.source.list(run.settings.state_dir).checkpoints
    latest = max(found, key=lambda checkpoint: (checkpoint.step, checkpoint.created_at), default=None)
    if latest is None:
        return "there is no checkpoint to look into yet"
    folder = Path(latest.uri)
    if not folder.is_dir():
        return f"{latest.label} is not on this machine; what it is shows when it is validated"
    with run.encoder.load(folder, "cpu") as model:
        return f"{latest.label}: {model.contract['kind']}, {model.dim} dimensions; {_sides(model.contract)}"


def _sides(contract: Mapping[str, Any]) -> str:
    sides = {side: _one_side(contract[side]) for side in ("query", "document")}
    if len(set(sides.values())) == 1:
        return f"queries and documents: {sides['query']}"
    return "; ".join(f"{side}: {words}" for side, words in sides.items())


def _one_side(tower: Mapping[str, Any]) -> str:
    length = f"at most {tower['max_length']} tokens ({tower['max_length_from']})"
    prefix = f", prefix {tower['prefix']!r}" if tower["prefix"] else ""
    heads = f", {', '.join(tower['heads'])}" if tower["heads"] else ""
    return f"{tower['pooling']} pooling{heads}, {'' if tower['normalize'] else 'not '}normalized, {length}{prefix}"


def _dataset(run: Run) -> str:
    test_set = run.dataset.open(run.settings.state_dir / "datasets")
    metrics_of(run.settings).check(test_set.qrels, test_set.name)
    documents, queries = len(test_set.corpus), len(test_set.query_ids)
    sample = run.sampler.draw(test_set, run.settings.seed, run.settings.state_dir / "runs")
    encoded = len(sample.ordinals)
    return (
        f"{test_set.name}: {documents:,} documents, {queries:,} queries, {len(test_set.qrels.gains):,} judgements; "
        f"the sample has {encoded:,} documents ({encoded / documents:.1%})"
    )
