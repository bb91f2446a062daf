"""How results were made, in words that may be shown to anyone: settings, versions, the command. No secret is in them."""

import contextlib
import functools
import importlib.metadata
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import Run, is_secret
from dr_validate.process import LOGIN

PACKAGES = ("dr_validate", "torch", "transformers", "tokenizers", "faiss-cpu", "faiss-gpu", "ranx", "numpy")
STAGES = ("dataset", "sampler", "index")  # those whose settings a spec depends on and no Report repeats
HIDDEN = "***"


@functools.cache
def versions() -> Mapping[str, str]:
    """Of Python and of the installed packages that numbers come from; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def settings_of(run: Run) -> dict[str, Any]:
    """Seed, cutoffs and for each of STAGES its `choice` and settings, as JSON values; what is not set (null) is left out."""
    settings = run.settings
    stages = {stage: _stage(run.raw.get(stage) or {}) for stage in STAGES}
    return {"seed": settings.seed, "top_k": settings.top_k, "metrics": list(settings.metrics), **stages}


def _stage(config: Mapping[str, Any]) -> dict[str, Any]:
    """`dr_validate.sampler.random.RandomSampler` is the choice `random`."""
    return {"choice": str(config.get("_target_")).rpartition(".")[0].rpartition(".")[2], **presentable(config)}


def command_line() -> str:
    """What was typed to start this process, to be typed again; of a sweep the job's own. "" where there was no command."""
    from hydra.core.hydra_config import HydraConfig  # which the worker does without

    if not HydraConfig.initialized():
        return ""
    hydra = HydraConfig.get()
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    words = [word for folder in folders for word in ("--config-dir", folder)]
    return " ".join(["python -m dr_validate", *map(_quoted, [*words, *map(_override, hydra.overrides.task)])])


def presentable(value: Any) -> Any:
    """A JSON value without secrets (keys named like one, logins in addresses) and with `~` for the home folder."""
    if isinstance(value, Mapping):
        kept = {str(key): part for key, part in value.items() if part is not None and key != "_target_"}
        return {key: HIDDEN if is_secret(key) else presentable(part) for key, part in kept.items()}
    if isinstance(value, str):
        return "~".join(_home().split(LOGIN.sub(f"{HIDDEN}@", value)))
    return [presentable(part) for part in value] if isinstance(value, Sequence) else value


def _override(override: str) -> str:
    key, equals, _ = override.partition("=")
    return f"{key}{equals}{HIDDEN}" if is_secret(override) else LOGIN.sub(f"{HIDDEN}@", override)


def _quoted(word: str) -> str:
    """For a shell, which knows the home folder; Hydra's grammar has another meaning for `~`."""
    parts = _home().split(word)
    if len(parts) == 1:
        return shlex.quote(word)
    return '"{}"'.format("$HOME".join(re.sub(r'([\\"$`])', r"\\\1", part) for part in parts))


def _home() -> re.Pattern[str]:
    """The home folder as the beginning of a path; nothing where there is none."""
    try:
        home = str(Path.home())
    except RuntimeError:
        home = "/"
    return re.compile(r"(?!)" if home == "/" else rf"(?<![\w.~/-]){re.escape(home)}(?=/|$)")
