"""BERT, RoBERTa and XLM-RoBERTa without transformers' model code: packed batches only, the same hidden states.

Not for speed in the model (transformers' own modules are as fast when packed) but before it: importing transformers' models
costs 2 CPU seconds in every process. What is unusual about a checkpoint is left to transformers. Imports torch: only imported
when a model is loaded.
"""

import logging
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from dr_validate.encoder.attention import Packing, Rule, attend
from dr_validate.encoder.bert_config import BertConfig, read_bert_config
from dr_validate.encoder.checks import check_unused, read_object
from dr_validate.encoder.linears import linear_of
from dr_validate.encoder.spec import TowerSpec

log = logging.getLogger(__name__)

PREFIX_OF = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}  # of the keys, where a head is saved, too


class Bert(nn.Module):
    """The encoder; modules are named as transformers saves them."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": _table(config.vocab_size, width),
                "position_embeddings": _table(config.max_position_embeddings, width),
                "token_type_embeddings": _table(config.type_vocab_size, width),
                "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps),
            }
        )
        layers = [
            _Layer(width, config.intermediate_size, heads, config.layer_norm_eps) for _ in range(config.num_hidden_layers)
        ]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.config = config

    def forward(self, ids: Tensor, positions: Tensor, layout: Packing, kept: Tensor | None = None) -> Tensor:
        """(num_tokens, width) for texts one after the other; ids and positions (num_tokens,).

        With `kept`, (num_kept,) numbers of tokens: (num_kept, width), and most of the last layer is computed for these alone.
        """
        table: Any = self.embeddings  # torch types what is in a ModuleDict as Tensor or Module
        layers: Any = self.encoder["layer"]
        hidden = table["word_embeddings"](ids) + table["token_type_embeddings"].weight[0]
        hidden = table["LayerNorm"](hidden + table["position_embeddings"](positions))
        *others, last = layers
        for layer in others:
            hidden = layer(hidden, layout)
        return last(hidden, layout, kept)  # type: ignore[no-any-return]  # torch types every module call as Any


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, epsilon: float) -> None:
        super().__init__()
        mixing = nn.ModuleDict({name: _linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": mixing, "output": _residual(width, width, epsilon)})
        self.intermediate = nn.ModuleDict({"dense": _linear(width, inner)})
        self.output = _residual(inner, width, epsilon)
        self.heads = heads
        self.rule = Rule(scale=(width // heads) ** -0.5, causal=False, window=None)

    def forward(self, hidden: Tensor, layout: Packing, kept: Tensor | None = None) -> Tensor:
        mixing: Any = self.attention["self"]
        parts = [mixing[name](hidden).view(len(hidden), self.heads, -1) for name in ("query", "key", "value")]
        mixed = attend((parts[0], parts[1], parts[2]), layout, self.rule).flatten(1)
        if kept is not None:  # after attention no token sees another
            mixed, hidden = mixed[kept], hidden[kept]
        hidden = _add(self.attention["output"], mixed, hidden)
        return _add(self.output, functional.gelu(self.intermediate["dense"](hidden)), hidden)


def _table(rows: int, width: int) -> nn.Embedding:
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width, device="meta"))  # its weights come from the file


def _linear(inner: int, outer: int) -> nn.Linear:
    return linear_of(torch.empty(outer, inner, device="meta"), torch.empty(outer, device="meta"))


def _residual(inner: int, width: int, epsilon: float) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": _linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps=epsilon)})


def _add(modules: Any, inputs: Tensor, hidden: Tensor) -> Tensor:
    return modules["LayerNorm"](modules["dense"](inputs) + hidden)  # type: ignore[no-any-return]  # as above


def load_bert(tower: TowerSpec, dtype: torch.dtype) -> Bert | None:
    """The encoder of a tower on the CPU, None where transformers must load it: another architecture, an adapter, weights
    that are not there under the usual names. What is wrong with them transformers' way says, too."""
    file = tower.weights / "model.safetensors"
    if (
        tower.adapter is not None
        or tower.weights_prefix
        or tower.config != tower.weights / "config.json"
        or read_object(tower.weights / "config.json")["model_type"] not in PREFIX_OF
        or not file.is_file()
    ):
        return None
    config = read_bert_config(tower.weights)
    if config is None:
        return None
    try:
        model = Bert(config)
        state, unused = _read(tower, PREFIX_OF[config.model_type], set(model.state_dict()))
        model.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True, assign=True)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SafetensorError) as error:
        log.debug("%s is left to transformers: %s", tower.weights, error)
        return None
    check_unused(tower.weights, tower.unused(unused), config.model_type)
    return model.eval().requires_grad_(False)


def _read(tower: TowerSpec, prefix: str, wanted: set[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under the names of our modules, and the names of those without a place."""
    with safe_open(tower.weights / "model.safetensors", "pt") as file:
        names = set(file.keys())
        own = prefix if any(name.startswith(prefix) for name in names) else ""
        state = {key: file.get_tensor(own + key) for key in wanted if own + key in names}
    return state, sorted(names - {own + key for key in wanted})
