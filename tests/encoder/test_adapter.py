"""PEFT adapters on a base that is stated; nothing is downloaded for them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.errors import CheckpointError
from dr_validate.values import Float32

STATED: dict[str, Any] = {"pooling": "mean", "normalize": True}


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(CheckpointError) as caught, AutoEncoder(**settings).load(folder, "cpu"):
        pass
    return str(caught.value)


def vectors_of(encoder: AutoEncoder, folder: Path) -> Float32:
    with encoder.load(folder, "cpu") as model:
        return np.asarray(model.encode(model.tokenizer("document").tokenize(["thin films", "dense retrieval"]), "document"))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


# peft 0.21 asks transformers 5 by an old name
OLD_NAME = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def adapter(bert: Path, tmp_path: Path) -> Path:
    import peft
    import transformers

    base: Any = transformers.AutoModel.from_pretrained(str(bert))
    torch.manual_seed(5)
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(str(tmp_path / "adapter"))
    edit(tmp_path / "adapter/adapter_config.json", base_model_name_or_path="gone/base")
    return tmp_path / "adapter"


@OLD_NAME
def test_an_adapter_without_its_base_names_the_key(adapter: Path) -> None:
    assert re.search("gone/base.*nothing is downloaded.*encoder.base_model", refusal(adapter, **STATED))


@OLD_NAME
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_its_base_gives_the_vectors_of_peft(adapter: Path, bert: Path, dtype: Any) -> None:
    import peft
    import transformers

    vectors = vectors_of(AutoEncoder(base_model=bert, dtype=dtype, pooling="cls", normalize=False), adapter)
    base: Any = transformers.AutoModel.from_pretrained(str(bert), dtype=getattr(torch, dtype))
    adapted = peft.PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(bert))
    ids = tokenizer("thin films", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = adapted(input_ids=ids).last_hidden_state[0, 0].float().numpy()
    tolerance = float(np.abs(expected).max()) * (1e-5 if dtype == "float32" else 0.02)
    assert np.abs(vectors[0] - expected).max() < tolerance
    plain = vectors_of(AutoEncoder(dtype=dtype, pooling="cls", normalize=False), bert)
    assert np.abs(vectors - plain).max() > 3 * tolerance  # the adapter shows, so the comparison above can fail


@OLD_NAME
def test_an_adapter_of_another_base_is_refused(adapter: Path, make_model: Callable[[str], Path]) -> None:
    other = make_model("RobertaConfig")
    edit(other / "config.json", num_hidden_layers=1)
    assert re.search("does not fit its base|cannot load", refusal(adapter, base_model=other, **STATED))


@OLD_NAME
def test_a_virtual_token_adapter_is_refused(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", peft_type="PROMPT_TUNING")
    assert "PROMPT_TUNING" in refusal(adapter, **STATED)


@OLD_NAME
def test_an_adapter_may_not_name_a_module_to_import(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="os")
    assert "megatron_config" in refusal(adapter, **STATED)
