"""Where a series starts: a sentence-transformers folder made worse, so that there is something to learn again; and how it is
saved. Imports torch: only imported when training begins."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

Kind = Literal["minilm3", "static"]

SPREAD_OF_EMBEDDINGS = 0.7  # of the noise, as the first series had it
SHARE_OF_EMBEDDINGS = 0.7  # that a static series starts from, beside its noise
# So large that LayerNorm leaves the lengths of token vectors, whose variance is near 0.002: a token's length is its weight.
STATIC_EPSILON = 1.0


class Student:
    """A BERT with mean pooling over unit vectors, its tokenizer, and what training must leave alone.

    `static` is a BERT without layers: the mean of token embeddings; places, types and special tokens add nothing to it. So
    whatever reads a BERT reads it.
    """

    def __init__(self, kind: Kind, base: Path, noise: float, lengths: tuple[int, int]) -> None:
        transformers_logging.set_verbosity_error()  # it reports the pooler that is left out
        transformers_logging.disable_progress_bar()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
        self.query_length, self.document_length = lengths
        self.model: Any = AutoModel.from_pretrained(str(base), local_files_only=True, add_pooling_layer=False)
        self._silent: Tensor | None = None
        if kind == "static":
            self._make_static(noise)
        else:
            self._make_shallow(noise)

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def embed(self, token_ids: list[list[int]]) -> Tensor:
        """(len(token_ids), dim) of length 1; differentiable."""
        longest = max(map(len, token_ids))
        ids, mask = (torch.zeros(len(token_ids), longest, dtype=torch.long) for _ in range(2))
        for row, text in enumerate(token_ids):
            ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return nn.functional.normalize(mean.float(), dim=-1)

    def after_step(self) -> None:
        """Undo what a step must not have changed."""
        if self._silent is not None:
            self.model.embeddings.word_embeddings.weight.data[self._silent] = 0

    def save(self, folder: Path, step: int) -> None:
        """As a sentence-transformers folder that says all: pooling, lengths, cosine."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        library = "sentence_transformers.models"
        parts = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
        modules = [
            {"idx": n, "name": str(n), "path": path, "type": f"{library}.{name}"}
            for n, (name, path) in enumerate(parts.items())
        ]
        lengths = {"query_length": self.query_length, "document_length": self.document_length}
        files = {
            "modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": self.document_length, "do_lower_case": False} | lengths,
            "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
            "1_Pooling/config.json": {"embedding_dimension": self.model.config.hidden_size, "pooling_mode": "mean"},
            "2_Normalize/config.json": {},
            "trainer_state.json": {"global_step": step},  # last: it says that the folder is complete
        }
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")

    @torch.no_grad()
    def _make_shallow(self, noise: float) -> None:
        """Three layers of it: the first, the third of six, the last; and noise in every matrix."""
        layers = self.model.encoder.layer
        chosen = sorted({0, len(layers) // 3, len(layers) - 1})
        self.model.encoder.layer = nn.ModuleList([layers[number] for number in chosen])
        self.model.config.num_hidden_layers = len(chosen)
        for name, parameter in self.model.named_parameters():
            if "word_embeddings" in name:
                _shake(parameter, noise * SPREAD_OF_EMBEDDINGS)
            elif parameter.dim() == 2 and "embedding" not in name:
                _shake(parameter, noise)

    @torch.no_grad()
    def _make_static(self, noise: float) -> None:
        config, embeddings = self.model.config, self.model.embeddings
        self.model.encoder.layer = nn.ModuleList()
        config.num_hidden_layers = 0
        config.layer_norm_eps = embeddings.LayerNorm.eps = STATIC_EPSILON
        config.hidden_dropout_prob = embeddings.dropout.p = 0.0
        self.model.requires_grad_(False)
        for table in (embeddings.position_embeddings, embeddings.token_type_embeddings):
            table.weight.zero_()
        embeddings.LayerNorm.weight.fill_(1)
        embeddings.LayerNorm.bias.zero_()
        words = embeddings.word_embeddings.weight
        spread = float(words.std())
        words.mul_(SHARE_OF_EMBEDDINGS).add_(torch.randn_like(words), alpha=noise * spread)
        words.requires_grad_(True)
        self._silent = torch.tensor(sorted(self.tokenizer.all_special_ids))
        self.after_step()


def _shake(parameter: Tensor, noise: float) -> None:
    parameter.add_(torch.randn_like(parameter), alpha=noise * float(parameter.std()))
