"""The ways through a transformer: each gives the hidden states of the padded forward, or is not taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dr_validate.encoder import attention, cpu
from dr_validate.encoder.auto import AutoEncoder
from dr_validate.encoder.cpu import PrepackedLinear, prepack_linears
from dr_validate.encoder.forward import Batch, Forward, choose_forward
from dr_validate.encoder.model import LoadedTower, TransformerModel
from dr_validate.errors import CheckpointError


def load_transformers(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    return transformers.AutoModel.from_pretrained(str(folder), dtype=dtype, attn_implementation="sdpa").eval()


class ReadsWeights(nn.Module):
    """A layer that computes with the weight of its linear layer, as some models do: it must not be replaced."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.dense = linear

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.nn.functional.linear(inputs, self.dense.weight, self.dense.bias)


@pytest.fixture
def _packing_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast this processor is."""
    monkeypatch.setattr(cpu, "packing_pays", lambda *shape: True)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN has such layers on this processor: those of bfloat16 need AVX-512 or better."""
    try:
        PrepackedLinear(nn.Linear(8, 8, dtype=dtype).requires_grad_(False))(torch.ones(2, 8, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return True


def test_where_both_kernels_take_as_long_no_race_chooses_how_numbers_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def race(*args: object) -> None:
        raise AssertionError("chance would choose")

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(cpu, "PrepackedLinear", race)
    assert not cpu.packing_pays.__wrapped__(384, 384, torch.float32)


@pytest.mark.usefixtures("_packing_pays")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_linear_layers_give_the_same_and_hold_no_second_copy(bert: Path, dtype: torch.dtype) -> None:
    model = load_transformers(bert, dtype)
    ids = torch.arange(2, 34).reshape(2, 16)
    with torch.inference_mode():
        before = model(input_ids=ids).last_hidden_state.float()
        packed = prepack_linears(model)
        after = model(input_ids=ids).last_hidden_state.float()
    assert packed == (13 if can_pack(dtype) else 0)  # six in each layer, one in the pooler
    assert sum(type(module) is nn.Linear for module in model.modules()) == 13 - packed
    assert all(module.weight.numel() == 0 for module in model.modules() if isinstance(module, PrepackedLinear))
    assert (after - before).abs().max() <= (1e-5 if dtype == torch.float32 else 0.1) * before.abs().max()


def no_such_layer(linear: nn.Linear) -> PrepackedLinear:
    raise RuntimeError("mkldnn_linear: bf16 path needs the cpu support avx512bw, avx512vl and avx512dq")


@pytest.mark.parametrize("measured", [True, False])
def test_layers_that_the_processor_has_no_instructions_for_stay_as_they_are(
    bert: Path, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_transformers(bert)
    ids = torch.arange(2, 34).reshape(2, 16)
    monkeypatch.setattr(cpu, "PrepackedLinear", no_such_layer)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    pays = cpu.packing_pays.__wrapped__ if measured else lambda *shape: True  # without what it remembers of other models
    monkeypatch.setattr(cpu, "packing_pays", pays)
    with torch.inference_mode():
        before = model(input_ids=ids).last_hidden_state
        assert prepack_linears(model) == 0
        assert torch.equal(model(input_ids=ids).last_hidden_state, before)


@pytest.mark.usefixtures("_packing_pays")
def test_a_shared_linear_layer_stays_shared() -> None:
    shared = nn.Linear(8, 8).requires_grad_(False)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert prepack_linears(model) == (2 if can_pack(torch.float32) else 0)
    assert model[0] is model[2]


@pytest.mark.usefixtures("_packing_pays")
def test_a_model_that_computes_with_the_weights_of_its_layers_keeps_them(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = []

    def load() -> Any:
        model = load_transformers(bert)
        loaded.append(model)
        output = model.encoder.layer[1].output
        output.dense = ReadsWeights(output.dense)
        return model

    with caplog.at_level("INFO"):
        chosen = choose_forward(load, torch.float32, "cpu")
    assert chosen.describe() == {"batches": "packed", "linear_layers": "torch"}
    assert "they stay as they are" in caplog.text
    assert type(loaded[-1].encoder.layer[1].output.dense.dense) is nn.Linear


def test_an_architecture_whose_texts_would_see_each_other_is_padded(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load() -> Any:
        model = load_transformers(bert)
        loaded.append(model)
        attend = model.encoder.layer[0].attention.self.forward

        def of_its_own(hidden: Tensor, **options: Any) -> Any:  # every token sees the whole row, whatever the packing
            if packing := options.get("packing"):
                options["packing"] = attention.packing(np.array([hidden.shape[1]]), "cpu")
                assert packing.longest < hidden.shape[1]
            return attend(hidden, **options)

        model.encoder.layer[0].attention.self.forward = of_its_own
        return model

    chosen = choose_forward(load, torch.float32, "cpu")
    assert chosen.describe()["batches"] == "padded"
    assert loaded[-1].config._attn_implementation == "sdpa"


def no_kernel(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer")


def of_others(query: Tensor, *_: Any, **__: Any) -> Tensor:
    return query + 1


@pytest.mark.parametrize("varlen_attn", [no_kernel, of_others])
@pytest.mark.parametrize("kind", ["BertConfig", "RobertaConfig", "DistilBertConfig"])
def test_where_the_fused_kernel_fails_or_gives_something_else_every_architecture_is_padded_and_says_so(
    kind: str,
    varlen_attn: Any,
    make_model: Callable[[str], Path],
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, encoder = make_model(kind), AutoEncoder(pooling="mean", normalize=True)
    with encoder.load(folder, "cpu") as model:
        expected = encoded(model, texts)
    for place in ("attention", "forward"):
        monkeypatch.setattr(f"dr_validate.encoder.{place}.fuses", lambda device: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr("dr_validate.encoder.forward.takes_packed", lambda dtype, device: True)
    with caplog.at_level("INFO"), encoder.load(folder, "cpu") as model:
        assert model.contract["batches"] == "padded"
        assert np.abs(encoded(model, texts) - expected).max() < 1e-5
    assert caplog.text.count("no packed batches, they are padded") == 1


def encoded(model: Any, texts: list[str]) -> Any:
    return np.asarray(model.encode(model.tokenizer("document").tokenize(texts), "document"))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_no_room_for_the_weights_is_the_failure_of_this_checkpoint_that_names_the_device(
    bert: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError(message)

    monkeypatch.setattr(nn.Module, "to", full)
    with pytest.raises(CheckpointError, match=r"no memory on cpu for its weights .* encoder.dtype=bfloat16"):
        AutoEncoder(pooling="mean", normalize=True).load(bert, "cpu").__enter__()


@pytest.mark.parametrize("option", ["softcap", "position_bias"])
def test_an_attention_with_more_to_it_is_refused(option: str) -> None:
    states = torch.ones(1, 2, 3, 4)
    layout = attention.packing(np.array([3]), "cpu")
    with pytest.raises(TypeError, match=option):
        attention._attend_for_transformers(nn.Module(), states, states, states, None, packing=layout, **{option: 1.0})


class ScarceMemory:
    """Raises what torch raises when more than `tokens` are in a batch: a machine with little memory."""

    def __init__(self, forward: Forward, tokens: int) -> None:
        self.forward, self.tokens = forward, tokens
        self.error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory")
        self.name, self.pads = forward.name, forward.pads
        self.batches: list[int] = []

    def __call__(self, batch: Batch) -> Tensor:
        if len(batch.ids) > self.tokens:
            raise self.error
        self.batches.append(len(batch.ids))
        return self.forward(batch)


def test_running_out_of_memory_halves_the_batches_until_they_fit(
    bert: Path, texts: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AutoEncoder(pooling="mean", normalize=True).load(bert, "cpu") as model:
        assert isinstance(model, TransformerModel)
        block = model.tokenizer("document").tokenize(texts)
        expected = np.asarray(model.encode(block, "document"))
        tower: LoadedTower = model._towers["document"]
        scarce = ScarceMemory(tower._forward, 150)
        monkeypatch.setattr(tower, "_forward", scarce)
        assert np.abs(np.asarray(model.encode(block, "document")) - expected).max() < 1e-5
        assert "out of memory" in caplog.text
        assert sum(scarce.batches) == len(block.ids)
        scarce.tokens, scarce.error = 10, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        with pytest.raises(CheckpointError, match="no memory on cpu for one text of 64 tokens"):
            np.asarray(model.encode(block, "document"))


def test_rows_of_packed_batches_have_few_lengths(bert: Path) -> None:
    model = load_transformers(bert)
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, __, inputs: rows.append(inputs["input_ids"].shape[1]), with_kwargs=True)
    forward = choose_forward(lambda: model, torch.float32, "cpu").forward
    assert forward.name == "packed"
    rows.clear()
    for length in range(1, 60, 7):
        lengths = np.array([length, length, 1])
        batch = Batch(rows=np.arange(3), lengths=lengths, ids=np.arange(2 * length + 1) % 300)
        with torch.inference_mode():
            assert len(forward(batch)) == 2 * length + 1
    assert set(rows) == {64, 128}


def test_two_threads_give_the_vectors_of_one(make_model: Callable[[str], Path], texts: list[str]) -> None:
    folder = make_model("BertConfig")
    with AutoEncoder(pooling="mean", normalize=True).load(folder, "cpu") as model:
        block = model.tokenizer("document").tokenize(texts * 40)
        assert isinstance(model, TransformerModel)
        alone = np.asarray(model.encode(block, "document"))
        torch.set_num_threads(2)
        try:
            together = np.asarray(model.encode(block, "document"))
            assert torch.get_num_threads() == 2  # what comes after the encoding has its threads again
        finally:
            torch.set_num_threads(1)
    assert np.abs(together - alone).max() < 1e-5
