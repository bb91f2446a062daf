"""Checkpoints as trainers write them: own heads, routes, static embeddings, native classes; and what is no dense encoder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.errors import CheckpointError
from dr_validate.source.completeness import is_wanted
from dr_validate.source.folder import FolderSource
from dr_validate.values import Float32, Side

TEXTS = ["thin films", "dense retrieval", "naive cafe with more words"]
STATED: dict[str, Any] = {"pooling": "mean", "normalize": True}


def vectors_of(folder: Path, side: Side = "document", **settings: Any) -> Float32:
    with AutoEncoder(**settings).load(folder, "cpu") as model:
        return np.asarray(model.encode(model.tokenizer(side).tokenize(TEXTS), side))


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        AutoEncoder(**settings).read(folder)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))


def first_tokens(folder: Path, tokenizer: Path) -> Tensor:
    """The hidden state of the first token, by transformers."""
    model: Any = transformers.AutoModel.from_pretrained(folder).eval()
    batch = transformers.AutoTokenizer.from_pretrained(tokenizer)(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        states: Tensor = model(**batch).last_hidden_state[:, 0]
    return states


@pytest.mark.parametrize("classifier", [False, True])
def test_ance_is_encoded_by_its_head_and_its_norm(
    make_model: Callable[[str], Path], tokenizer_folder: Path, tmp_path: Path, classifier: bool
) -> None:
    plain = make_model("RobertaConfig")
    head, norm = nn.Linear(32, 16), nn.LayerNorm(16)
    nn.init.normal_(norm.weight)
    expected = norm(head(first_tokens(plain, tokenizer_folder))).detach().numpy()
    ance = Path(shutil.copytree(plain, tmp_path / "ance"))
    weights = {f"roberta.{name}": weight for name, weight in load_file(plain / "model.safetensors").items()}
    weights |= {f"embeddingHead.{name}": weight for name, weight in head.state_dict().items()}
    weights |= {f"norm.{name}": weight for name, weight in norm.state_dict().items()}
    if classifier:  # its class is derived from RobertaForSequenceClassification, and never calls that head
        weights["classifier.dense.weight"] = torch.ones(32, 32)
        edit(ance / "config.json", architectures=["RobertaForSequenceClassification"])
    save_file(weights, ance / "model.safetensors", metadata={"format": "pt"})
    assert np.allclose(vectors_of(ance), expected, atol=1e-5)
    contract = AutoEncoder().read(ance)["contract"]["document"]
    assert (contract["pooling"], contract["normalize"]) == ("cls", False)
    assert contract["heads"] == ["dense 32->16 Identity of embeddingHead.*", "layer_norm of norm.*"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_pooler_of_tevatron_1_is_loaded_from_safetensors_and_its_pickle_refused(
    bert: Path, tokenizer_folder: Path, tied: bool
) -> None:
    layers = {"linear_q": nn.Linear(32, 16), "linear_p": nn.Linear(32, 16)}
    kept = {"linear_q": layers["linear_q"]} if tied else layers
    weights = {f"{name}.{key}": value for name, layer in kept.items() for key, value in layer.state_dict().items()}
    edit(bert / "pooler_config.json", input_dim=32, output_dim=16, tied=tied)
    torch.save(weights, bert / "pooler.pt")
    assert "its weights are a pickle, pooler.pt, which can run code and is never loaded; convert it" in refusal(bert)
    save_file({name: weight.clone() for name, weight in weights.items()}, bert / "pooler.safetensors")
    states = first_tokens(bert, tokenizer_folder)
    for side, name in (("query", "linear_q"), ("document", "linear_q" if tied else "linear_p")):
        expected = layers[name](states).detach().numpy()
        assert np.allclose(vectors_of(bert, "query" if side == "query" else "document"), expected, atol=1e-5)
    assert is_wanted("pooler_config.json") and is_wanted("pooler.safetensors") and not is_wanted("pooler.pt")


def sentence_model(modules: list[Any], folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
    model.save(str(folder))
    return model.eval()


def static(tokenizer: Path) -> Any:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    return StaticEmbedding(Tokenizer.from_file(str(tokenizer / "tokenizer.json")), embedding_dim=32)


def transformer(folder: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    return [Transformer(str(folder), max_seq_length=40), Pooling(32, pooling_mode="mean")]


def test_a_static_embedding_is_the_mean_of_its_words(tokenizer_folder: Path, tmp_path: Path) -> None:
    theirs = sentence_model([static(tokenizer_folder)], tmp_path / "model").encode(TEXTS, normalize_embeddings=True)
    assert np.allclose(vectors_of(tmp_path / "model"), theirs, atol=1e-5)
    assert AutoEncoder().read(tmp_path / "model")["contract"]["document"]["architecture"] == "StaticEmbedding"
    (found,) = FolderSource(path=tmp_path).list(tmp_path.parent / "state").checkpoints
    assert found.name == "model"


def test_a_table_of_model2vec_is_read_with_its_mapping_and_weights(tokenizer_folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "model"
    sentence_model([static(tokenizer_folder)], folder)
    size = len(load_file(folder / "model.safetensors")["embedding.weight"])
    tables = {"embeddings": torch.randn(9, 32), "mapping": torch.arange(size) % 9, "weights": torch.rand(size)}
    save_file(tables, folder / "model.safetensors")
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert np.allclose(vectors_of(folder), theirs, atol=1e-5)


def test_each_side_takes_its_route(bert: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Router

    folder = tmp_path / "out" / "model"
    dense = Dense(32, 32, activation_function=nn.SiLU())
    router = Router.for_query_document([static(tokenizer_folder)], [*transformer(bert), dense])
    model = sentence_model([router, Normalize()], folder)
    assert np.allclose(vectors_of(folder, "query"), model.encode_query(TEXTS), atol=1e-5)
    assert np.allclose(vectors_of(folder, "document"), model.encode_document(TEXTS), atol=1e-5)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")]
    assert len(names) == 3 and all(is_wanted(name) for name in names)
    (found,) = FolderSource(path=tmp_path / "out").list(tmp_path / "state").checkpoints
    assert found.name == "model"
    edit(folder / "router_config.json", structure={"image": []}, parameters={})
    assert "no route for a query: it has ['image']" in refusal(folder)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Sigmoid()])
def test_activations_of_dense_are_the_librarys(bert: Path, tmp_path: Path, activation: nn.Module) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense

    model = sentence_model([*transformer(bert), Dense(32, 16, activation_function=activation)], tmp_path / "model")
    assert np.allclose(vectors_of(tmp_path / "model"), model.encode(TEXTS, normalize_embeddings=True), atol=1e-5)


def test_a_native_class_whose_config_keeps_its_code_is_loaded_where_that_is_stated(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    family: Any = transformers.CONFIG_MAPPING["nomic_bert"]
    config = family(vocab_size=300, pad_token_id=1, **sizes)
    torch.manual_seed(3)
    model: Any = transformers.AutoModel.from_config(config)
    folder = tmp_path / "nomic"
    model.save_pretrained(folder)
    for path in tokenizer_folder.iterdir():
        shutil.copy(path, folder)
    edit(folder / "config.json", auto_map={"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"})
    assert "remote code is never run" in (said := refusal(folder, **STATED)) and "encoder.native=true" in said
    found = vectors_of(folder, native=True, pooling="cls", normalize=False)
    edit(folder / "config.json", auto_map={})
    assert np.allclose(found, first_tokens(folder, tokenizer_folder).numpy(), atol=1e-5)


def test_weights_that_nothing_uses_stand_in_the_report(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(bert / "model.safetensors") | {"cls.predictions.bias": torch.ones(3)}
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    said = "1 weights of the file make no vector and are not used: cls.predictions.bias"
    assert AutoEncoder(**STATED).read(bert)["contract"]["warnings"] == [said]
    assert [record.levelname for record in caplog.records if record.getMessage() == said] == ["WARNING"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "this is a cross-encoder, which scores a query and a document"),
        ({"architectures": ["HF_ColBERT"]}, "this is ColBERT or another late-interaction model"),
        ({"architectures": ["SpladeForMaskedLM"]}, "this is SPLADE or another sparse encoder"),
    ],
)
def test_what_is_no_dense_encoder_is_refused_by_name(bert: Path, settings: dict[str, Any], said: str) -> None:
    edit(bert / "config.json", **settings)
    assert said in refusal(bert, **STATED)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("CrossEncoder", "a cross-encoder"), ("SparseEncoder", "SPLADE"), ("MultiVectorEncoder", "ColBERT")],
)
def test_the_librarys_other_models_are_refused_by_name(bert: Path, kind: str, said: str) -> None:
    (bert / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]')
    edit(bert / "config_sentence_transformers.json", model_type=kind)
    assert f"{kind}: this is {said}" in refusal(bert, **STATED)
