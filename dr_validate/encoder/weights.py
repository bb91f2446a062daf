"""Load a transformer from safetensors, every weight accounted for. Imports torch: only imported when a model is loaded."""

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dr_validate.encoder.backbone import ENCODER_OF
from dr_validate.encoder.checks import check_unused, read_object, some, weight_files, weight_shapes
from dr_validate.encoder.spec import TowerSpec
from dr_validate.errors import CheckpointError

log = logging.getLogger(__name__)

# Of a configuration whose numbers are no numbers, of another type, negative or beyond 64 bits.
ODD_SIZES = (TypeError, ArithmeticError, AssertionError, IndexError, StrictDataclassError)
# A pooler and the like may be missing in the file: what is much more than it holds would be memory for nothing.
MOST_TIMES, MOST_BESIDE = 2, 1 << 24
_amounts: dict[tuple[str, str], int] = {}  # of weights, by configuration: checkpoints of a training have the same


def load_transformer(tower: TowerSpec, dtype: torch.dtype, device: str) -> Any:
    """The transformer in eval mode on `device`, its adapter merged where that is exact.

    Raises CheckpointError naming a weight that is missing (it would be random), has the wrong shape, or has no place in the
    model though it may make the vector; others without a place, such as the head of a language model, are only logged.
    """
    with _quiet():
        model: Any = _load_base(tower, dtype)
        if tower.adapter is not None:
            model = _load_adapter(model, tower.adapter, dtype)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # keys and values are for a generation that never comes
    return model.to(device).eval().requires_grad_(False)


def _load_base(tower: TowerSpec, dtype: torch.dtype) -> Any:
    folder = tower.weights
    try:
        model, info = _from_pretrained(tower, dtype)
    except CheckpointError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, AttributeError, SafetensorError, *ODD_SIZES) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    wrong = [f"{name} (file {tuple(file)}, model {tuple(wanted)})" for name, file, wanted in sorted(info["mismatched_keys"])]
    if wrong:
        raise CheckpointError(f"{folder}: weights of the wrong shape: {some(wrong)}; {tower.config} is of another model")
    # No vector here is made from the pooler of BERT: a model trained without one is whole.
    missing = sorted(name for name in info["missing_keys"] if "pooler." not in name)
    if missing:
        raise CheckpointError(
            f"{folder}: weights missing in the file, which would be random: {some(missing)}; {_way_out(tower, missing)}"
        )
    unused = tower.unused(f"{tower.weights_prefix}{name}" for name in info["unexpected_keys"])
    check_unused(folder, unused, model.config.model_type)
    return model


def _way_out(tower: TowerSpec, missing: Sequence[str]) -> str:
    """Where all are there under names that begin with something else, that is what to state."""
    found = {name.removesuffix(missing[0]) for name in weight_shapes(tower.weights) if name.endswith(f".{missing[0]}")}
    if not found:
        return "save the whole model again"
    return f"if they are those that begin with {' or '.join(sorted(found))}, set encoder.weights_prefix"


def _from_pretrained(tower: TowerSpec, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    content = read_object(tower.config)
    kind = str(content["model_type"])
    family: Any = getattr(transformers, ENCODER_OF.get(kind, "AutoModel"))
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(tower.weights)}
    if tower.weights_prefix or tower.config != tower.weights / "config.json":
        kind = "bert" if kind == "dpr" else kind
        config = transformers.CONFIG_MAPPING[kind].from_dict({**content, "model_type": kind})
        _check_amount(tower, kind, config)
        family = transformers.MODEL_MAPPING[type(config)] if kind not in ENCODER_OF else family
        place = {"pretrained_model_name_or_path": None, "config": config, "state_dict": _taken(tower)}
    else:
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        _check_amount(tower, kind, transformers.AutoConfig.from_pretrained(str(tower.weights), **local))

    def load(attention: str) -> Any:
        return family.from_pretrained(
            **place,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by us, with shapes
        )

    try:
        model, info = load("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        model, info = load("eager")  # this architecture has no other
    return model, info


def _check_amount(tower: TowerSpec, kind: str, config: Any) -> None:
    """Raise CheckpointError where the configuration asks for much more weights than the file has; no memory is taken for it."""
    asked = kind, config.to_json_string(use_diff=False)
    if asked not in _amounts:
        with torch.device("meta"):
            own: Any = getattr(transformers, ENCODER_OF[kind]) if kind in ENCODER_OF else transformers.AutoModel.from_config
            _amounts[asked] = sum(weight.numel() for weight in own(copy.deepcopy(config)).parameters())
    wanted = _amounts[asked]
    there = sum(math.prod(shape) for shape in weight_shapes(tower.weights).values())
    if wanted > MOST_TIMES * there + MOST_BESIDE:
        raise CheckpointError(
            f"{tower.config}: is of a model of {wanted:,} weights, but {tower.weights} holds {there:,}: another model's, or cut"
        )


def _taken(tower: TowerSpec) -> dict[str, Tensor]:
    """Weights whose names begin with the prefix, without it. Raises CheckpointError where others are another encoder's."""
    every = {name: weight for path in weight_files(tower.weights) for name, weight in load_file(path).items()}
    prefix = tower.weights_prefix
    taken = {name.removeprefix(prefix): weight for name, weight in every.items() if name.startswith(prefix)}
    if len(taken) < len(every):
        counts = len(taken), len(every)
        log.info("%s: %d of %d weights begin with %s, the others are left out", tower.weights.name, *counts, prefix)
    first = min(taken)
    others = {name.removesuffix(first) for name in every if name.endswith(first) and not name.startswith(prefix)}
    for other in sorted(others):
        twins = [(every.get(other + name), weight) for name, weight in taken.items()]
        if all(twin is not None for twin, _ in twins) and not all(
            torch.equal(twin, weight) for twin, weight in twins if twin is not None
        ):
            raise CheckpointError(
                f"{tower.weights}: there is another encoder under {other}, with other weights than the one under {prefix}: "
                "save the two as folders query_model/ and passage_model/, so that each side has its own"
            )
    return taken


def _load_adapter(model: nn.Module, folder: Path, dtype: torch.dtype) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: a PEFT adapter needs the package peft, which is not installed: pip install 'dr_validate[peft]'"
        ) from error
    try:
        with warnings.catch_warnings():  # peft 0.21 asks transformers 5 by an old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            adapted = peft.PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: peft cannot load the adapter: {error}") from error
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    # "auto" would look on the hub whether the base's vocabulary grew; embeddings saved with the adapter are plain weights.
    wanted = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    extra, missing = stored - wanted - set(adapted.state_dict()), wanted - stored
    if extra or missing:
        raise CheckpointError(
            f"{folder}: the adapter does not fit its base: only in the file {some(sorted(extra))}, only in the model "
            f"{some(sorted(missing))}; set encoder.base_model to the base it was trained on"
        )
    if dtype == torch.float32:
        return adapted.merge_and_unload()  # type: ignore[no-any-return]  # peft is untyped
    return adapted  # type: ignore[no-any-return]  # merged low-precision weights would round differently than in training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no load report from transformers: what matters of it, we say."""
    bars: Any = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    loader = logging.getLogger("transformers.modeling_utils")
    bars.disable_progress_bar()
    loader.addFilter(_drop)  # raising its level instead would start a check for tensor parallelism
    try:
        yield
    finally:
        loader.removeFilter(_drop)
        if shown:
            bars.enable_progress_bar()


def _drop(record: logging.LogRecord) -> bool:
    return False
