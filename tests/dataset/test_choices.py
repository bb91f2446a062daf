import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf" / "dataset"


@pytest.mark.parametrize("choice", ["beir", "dpr", "hub", "ir_datasets", "msmarco", "pydoc", "tevatron"])
def test_a_choice_lists_every_key_at_the_default_of_its_class(choice: str) -> None:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{choice}.yaml"))
    module, _, name = values.pop("_target_").rpartition(".")
    fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    required = {field.name for field in fields if values.get(field.name) == "???"}
    assert set(values) == {field.name for field in fields}
    cls = getattr(importlib.import_module(module), name)
    assert required == ({"path"} if choice == "beir" else {"id"} if choice in ("hub", "ir_datasets") else set())
    given = {key: "somewhere" for key in required} | ({"path": "somewhere"} if choice in ("tevatron", "dpr") else {})
    by_default = cls(**given)
    by_file = cls(**{key: value for key, value in values.items() if key not in given}, **given)
    assert by_file == by_default
