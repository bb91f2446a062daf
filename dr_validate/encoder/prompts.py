"""Which prompt sentence-transformers puts before queries and documents (`encode_query`, `encode_document`)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dr_validate.encoder.spec import EncoderSpec, contradiction
from dr_validate.errors import CheckpointError, NotStated
from dr_validate.values import Side

log = logging.getLogger(__name__)

CANDIDATES: Mapping[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


def prompt_warnings(side: Side, library: Mapping[str, Any], stated: EncoderSpec) -> list[str]:
    """Where another prefix is stated than the prompt that the checkpoint names for this side; an empty one says nothing."""
    prompts = library.get("prompts")
    named = [prompts[name] for name in CANDIDATES[side] if prompts.get(name)] if isinstance(prompts, dict) else []
    return contradiction(f"{side}_prefix", stated.prefix(side), str(named[0]) if named else None, "prompts")


def prompt_for(side: Side, library: Mapping[str, Any], stated: EncoderSpec, folder: Path) -> str:
    """The prefix of one side: what is stated, else the first candidate among the saved prompts, else none.

    `library` is config_sentence_transformers.json. A default prompt alone is refused: version 5 puts it before both sides,
    version 6 before neither.
    """
    configured = stated.prefix(side)
    if configured is not None:
        return configured
    prompts = library.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise CheckpointError(f"{folder / 'config_sentence_transformers.json'}: prompts: got {prompts!r}, expected an object")
    name = next((candidate for candidate in CANDIDATES[side] if candidate in prompts), None)
    if name is not None:
        prompt = str(prompts[name] or "")
        if prompt and name != CANDIDATES[side][0]:
            log.warning("%s: %ss get the prompt %r (%r), which sentence-transformers 6 skips", folder.name, side, name, prompt)
        return prompt
    default = library.get("default_prompt_name")
    if default and prompts.get(default):
        raise NotStated(
            f"{folder}: default_prompt_name {default!r}: versions of sentence-transformers disagree whether its prompt "
            f"{prompts[default]!r} goes before a {side}; set encoder.{side}_prefix to it, or to ''"
        )
    return ""
