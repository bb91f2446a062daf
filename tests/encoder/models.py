"""Small random models of every architecture, saved the way trainers save them."""

from pathlib import Path
from typing import Any


def small_config(name: str) -> Any:
    import transformers

    common: dict[str, Any] = {"vocab_size": 300, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
    }
    if name == "DistilBertConfig":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 66}
    if name == "T5Config":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    if name.startswith(("Qwen", "Llama", "Mistral")):
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if name == "MistralConfig":
        sizes |= {"sliding_window": 7}  # shorter than the longest text
    if name == "ModernBertConfig":
        common |= {"cls_token_id": 0, "sep_token_id": 2}
        sizes |= {"local_attention": 12, "global_attn_every_n_layers": 2}
    return getattr(transformers, name)(**common, **sizes)


def save_model(folder: Path, tokenizer_folder: Path | None, config: Any) -> Path:
    import torch
    import transformers

    torch.manual_seed(7)
    family: Any = transformers.T5EncoderModel if config.model_type == "t5" else transformers.AutoModel
    model = _new(family, config)
    model.save_pretrained(str(folder))
    for path in tokenizer_folder.iterdir() if tokenizer_folder else ():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _new(family: Any, config: Any) -> Any:
    model = family(config) if config.model_type == "t5" else family.from_config(config)
    for parameter in model.parameters():  # larger than the usual start, so that differences show
        parameter.data.normal_(0, 0.2)
    return model
