import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dr_validate.encoder.bert_config import read_bert_config


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


@pytest.mark.parametrize("name", ["BertConfig", "RobertaConfig", "XLMRobertaConfig"])
def test_what_is_read_is_what_transformers_reads(make_model: Callable[[str], Path], name: str) -> None:
    from transformers import AutoConfig

    folder = make_model(name)
    ours = read_bert_config(folder)
    assert ours is not None
    theirs = AutoConfig.from_pretrained(str(folder)).to_dict()
    assert asdict(ours) == {key: theirs[key] for key in asdict(ours)}


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_act": "relu"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"position_embedding_type": "relative_key"},
        {"hidden_size": "absent"},  # a default of transformers would count
        {"pad_token_id": "absent"},
        {"layer_norm_eps": "absent"},
        {"num_attention_heads": 5},
        {"num_attention_heads": 0},
        {"vocab_size": "300"},
    ],
)
def test_what_is_unusual_or_not_stated_is_left_to_transformers(bert: Path, values: dict[str, Any]) -> None:
    assert read_bert_config(bert) is not None
    change(bert, **values)
    assert read_bert_config(bert) is None
