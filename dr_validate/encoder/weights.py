"""Load a transformer from safetensors, every weight accounted for. Imports torch: only imported when a model is loaded."""

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn

from dr_validate.encoder.backbone import ENCODER_OF
from dr_validate.encoder.checks import read_object
from dr_validate.encoder.terms import Tower
from dr_validate.errors import CheckpointError

log = logging.getLogger(__name__)


def load_transformer(tower: Tower, dtype: torch.dtype, device: str) -> Any:
    """The transformer in eval mode on `device`, its adapter merged where that is exact.

    Raises CheckpointError naming a weight that is missing (it would be random) or has the wrong shape. Weights the model has
    no place for, such as the head of a language model, are only logged.
    """
    with _quiet():
        model: Any = _load_base(tower.weights, dtype)
        if tower.adapter is not None:
            model = _load_adapter(model, tower.adapter, dtype)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # keys and values are for a generation that never comes
    return model.to(device).eval().requires_grad_(False)


def _load_base(folder: Path, dtype: torch.dtype) -> nn.Module:
    try:
        model, info = _from_pretrained(folder, dtype)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    wrong = [f"{name} (file {tuple(file)}, model {tuple(wanted)})" for name, file, wanted in sorted(info["mismatched_keys"])]
    if wrong:
        raise CheckpointError(f"{folder}: weights of the wrong shape: {_some(wrong)}; config.json is of another model")
    # No vector here is made from the pooler of BERT: a model trained without one is whole.
    missing = sorted(name for name in info["missing_keys"] if "pooler." not in name)
    if missing:
        raise CheckpointError(
            f"{folder}: weights missing in the file, which would be random: {_some(missing)}; save the whole model again"
        )
    if info["unexpected_keys"]:
        log.info("%s: weights that encoding does not use: %s", folder.name, _some(sorted(info["unexpected_keys"])))
    return model


def _from_pretrained(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    family: Any = getattr(transformers, ENCODER_OF.get(str(read_object(folder / "config.json")["model_type"]), "AutoModel"))

    def load(attention: str) -> Any:
        return family.from_pretrained(
            str(folder),
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
            f"{folder}: the adapter does not fit its base: only in the file {_some(sorted(extra))}, only in the model "
            f"{_some(sorted(missing))}; set encoder.base_model to the base it was trained on"
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


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "none"
