"""What a checkpoint's files may ask for and never get: code, downloads, folders of this machine, memory without end."""

import base64
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.encoder.checks import check_normalizer
from dr_validate.errors import CheckpointError, NotStated

STATED: dict[str, Any] = {"pooling": "mean", "normalize": True}
CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Evil:\n    pass\n"
HUGE = 10**9


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(CheckpointError) as caught, AutoEncoder(**STATED, **settings).load(folder, "cpu"):
        pass
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The servers that somebody asked for."""
    found: list[str] = []

    def ask(host: Any, *_: Any, **__: Any) -> Any:
        found.append(str(host))
        raise socket.gaierror("no server in a test")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return found


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A stand-in for the package `kernels`, which fetches code from the hub; what it is asked for is in the file."""
    package = tmp_path / "packages/kernels"
    package.mkdir(parents=True)
    said = tmp_path / "asked of kernels"
    (package / "__init__.py").write_text(f"def get_kernel(*names, **_):\n    open({str(said)!r}, 'a').write(str(names))\n")
    monkeypatch.syspath_prepend(str(package.parent))
    yield said
    sys.modules.pop("kernels", None)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize(
    "value", ["somebody/kernel@0123abc", "flash_attention_2", {"": "sdpa", "text_config": "somebody/kernel:f"}]
)
def test_a_kernel_of_the_hub_is_refused_wherever_it_is_named(
    bert: Path, kernels: Path, asked: list[str], key: str, value: Any
) -> None:
    edit(bert / "config.json", **{key: value})
    assert re.search(f"config.json: {key}: got .* never fetched and never run.*remove the key", refusal(bert))
    assert not kernels.exists()
    assert not asked


@pytest.mark.parametrize(
    "nested",
    [
        {"_experts_implementation": "somebody/experts"},
        {"text_config": {"_attn_implementation": "somebody/kernel"}},
        {"per_layer_config": {"0": {"experts_implementation": "somebody/kernel"}}},
        {"sub": [{"deep": {"attn_implementation": "somebody/kernel"}}]},
    ],
)
def test_nor_may_a_nested_configuration_name_one(bert: Path, nested: Mapping[str, Any]) -> None:
    edit(bert / "config.json", **nested)
    assert "_implementation: got 'somebody/" in refusal(bert)


@pytest.mark.parametrize("value", [None, "eager", "sdpa"])
def test_what_transformers_computes_itself_may_be_named(bert: Path, value: str | None) -> None:
    edit(bert / "config.json", _attn_implementation=value)
    with AutoEncoder(**STATED).load(bert, "cpu") as model:
        assert model.dim == 32


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}),
        ("config.json", {"auto_map": {"AutoModel": "somebody/repository--evil.Evil"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "evil.Evil"}}}),
        ("config.json", {"model_type": "evil", "architectures": ["Evil"]}),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("modules.json", [{"idx": 0, "path": "", "type": "evil.Evil"}]),
        ("modules.json", [{"idx": 0, "path": "../../elsewhere", "type": "sentence_transformers.models.Transformer"}]),
        ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}}),
        ("sentence_bert_config.json", {"config_args": {"code_revision": "main"}}),
        ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "somebody/model"}),
        ("adapter_config.json", {"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "evil"}),
        ("adapter_config.json", {"peft_type": "EVIL", "auto_mapping": {"parent_library": "evil", "base_model_class": "Evil"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:50],
)
def test_code_never_runs_and_nothing_is_downloaded_whatever_names_it(
    bert: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, name: str, changes: Any
) -> None:
    (bert / "evil.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(bert))
    if name == "sentence_bert_config.json":
        parts = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
        parts += [{"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
        (bert / "modules.json").write_text(json.dumps(parts))
    if name == "adapter_config.json":
        save_file({"x": torch.ones(1)}, bert / "adapter_model.safetensors")
    edit(bert / name, **changes) if isinstance(changes, dict) else (bert / name).write_text(json.dumps(changes))
    assert refusal(bert)
    assert not (bert / "ran").exists()
    assert not asked


def test_a_class_of_the_tokenizer_that_nobody_knows_runs_nothing(bert: Path, asked: list[str]) -> None:
    (bert / "evil.py").write_text(CODE)
    edit(
        bert / "tokenizer_config.json", tokenizer_class="Evil", name_or_path="somebody/tokenizer", tokenizer_file="/etc/passwd"
    )
    with AutoEncoder(**STATED).load(bert, "cpu") as model:
        assert model.tokenizer("query").tokenize(["thin films"]).ids.size > 2
    assert not (bert / "ran").exists()
    assert not asked


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Of weights for one module of the random BERT."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    edit(folder / "adapter_config.json", peft_type="LORA", r=4, lora_alpha=8, target_modules=["query"])
    save_file({"lora_A.weight": torch.ones(4, 32)}, folder / "adapter_model.safetensors")
    return folder


def test_a_base_outside_the_checkpoint_is_followed_only_where_it_is_stated(adapter: Path, bert: Path) -> None:
    for name in (str(bert), f"../{bert.name}", "gone", "", "x" * 5000, "a\0b", 7):
        edit(adapter / "adapter_config.json", base_model_name_or_path=name)
        with pytest.raises(NotStated, match=r"set encoder.base_model to the folder of the base model"):
            AutoEncoder(**STATED).read(adapter)
        assert AutoEncoder(base_model=bert, **STATED).read(adapter)["contract"]["query"]["adapter"]


def test_a_base_below_the_checkpoint_is_taken(adapter: Path, bert: Path) -> None:
    shutil.copytree(bert, adapter / "base")
    for name in ("base", "./base", str(adapter / "base")):
        edit(adapter / "adapter_config.json", base_model_name_or_path=name)
        assert AutoEncoder(**STATED).read(adapter)["contract"]["query"]["adapter"]


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("target_modules", "(.*a)*$"),
        ("target_modules", ".*.*.*.*.*.*.*.*x"),
        ("target_modules", "(a+)+$"),
        ("target_modules", ["query", "([a-z.]+)*x"]),
        ("exclude_modules", "(a|aa)+$"),
        ("modules_to_save", ["(.*)*x"]),
        ("layers_pattern", ["(l+)+x"]),
        ("rank_pattern", {"(.*)*x": 4}),
        ("alpha_pattern", {r"(.)\1{9,}": 4}),
    ],
)
def test_a_pattern_that_could_take_forever_is_refused(adapter: Path, bert: Path, key: str, pattern: Any) -> None:
    edit(adapter / "adapter_config.json", **{key: pattern})
    assert re.search(
        r"adapter_config.json: got the regular expression .*name the modules in a list", refusal(adapter, base_model=bert)
    )


@pytest.mark.parametrize(
    "pattern",
    [
        ["query", "layer.0.attention.self.value"],
        "all-linear",
        r".*\.(query|value)",
        r"(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj).*$|.*(custom_text_proj).*$)",
        r"^encoder\.layer\.[0-9]+\.attention.*\.query$",
        r"(?:model\.)layers\.\d+\.mlp",
    ],
)
def test_a_pattern_as_people_write_it_is_taken(adapter: Path, bert: Path, pattern: Any) -> None:
    edit(adapter / "adapter_config.json", target_modules=pattern)
    assert AutoEncoder(base_model=bert, **STATED).read(adapter)


@pytest.mark.parametrize("changes", [{"r": HUGE}, {"rank_pattern": {"query": HUGE}}, {"layer_replication": [[0, HUGE]]}])
def test_an_adapter_larger_than_its_weights_is_refused(adapter: Path, bert: Path, changes: Mapping[str, Any]) -> None:
    edit(adapter / "adapter_config.json", **changes)
    assert re.search("got the rank 1000000000, but|layer_replication is not supported", refusal(adapter, base_model=bert))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": HUGE},
        {"num_hidden_layers": 1000, "model_type": "roberta"},  # few enough to be made, and too much for the file
        {"vocab_size": 20_000_000},
        {"hidden_size": HUGE},
        {"intermediate_size": 10**30},
        {"max_position_embeddings": 10**12},
        {"text_config": {"num_hidden_layers": HUGE}},
        {"depths": [2, HUGE]},
    ],
    ids=str,
)
def test_a_configuration_larger_than_the_weights_is_refused_before_memory_is_taken(bert: Path, changes: dict[str, Any]) -> None:
    edit(bert / "config.json", **changes)
    if changes.get("model_type"):
        edit(bert / "config.json", hidden_size=256, vocab_size=256)
        save_file({"embeddings.word_embeddings.weight": torch.ones(256, 256)}, bert / "model.safetensors")
    assert re.search("the configuration is of another model|is of a model of .* weights, but", refusal(bert))


def test_a_head_larger_than_its_weights_is_refused_before_memory_is_taken(bert: Path) -> None:
    for name in ("1_Pooling", "2_Dense"):
        (bert / name).mkdir()
    edit(bert / "1_Pooling/config.json", pooling_mode_mean_tokens=True)
    edit(bert / "2_Dense/config.json", in_features=32, out_features=10**11)
    save_file({"linear.weight": torch.ones(8, 32), "linear.bias": torch.ones(8)}, bert / "2_Dense/model.safetensors")
    names = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    parts = [{"idx": i, "path": path, "type": f"sentence_transformers.models.{name}"} for i, (path, name) in enumerate(names)]
    (bert / "modules.json").write_text(json.dumps(parts))
    assert "does not fit dense 32->100000000000" in refusal(bert)


def replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(longest: str) -> str:
    """SentencePiece's table: a trie of four bytes, its size before it, and what characters become."""
    return base64.b64encode(b"\4\0\0\0" + b"trie" + b"a\0" + longest.encode() + b"\0").decode()


@pytest.mark.parametrize(
    "members",
    [
        [replace({"String": "a"}, "a" * 1000)] * 6,
        [replace({"Regex": ""}, "aa")] * 20,
        [replace({"Regex": "[ab]"}, "b" * 30)] * 2,
        [{"type": "Prepend", "prepend": "a" * 10_000}],
        [{"type": "Precompiled", "precompiled_charsmap": charsmap("b" * 18)}] * 3,
    ],
)
def test_a_normalizer_that_makes_texts_grow_without_end_is_refused(bert: Path, members: list[Any]) -> None:
    edit(bert / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": members})
    assert re.search("tokenizer.json: normalizer: .* times as long, expected at most 512.*encoder.tokenizer", refusal(bert))


def test_the_replacements_of_known_tokenizers_are_taken(bert: Path) -> None:
    members = [replace({"String": "``"}, '"'), replace({"String": "''"}, '"'), {"type": "NFKD"}, {"type": "Lowercase"}]
    members += [replace({"Regex": " {2,}"}, " "), {"type": "Prepend", "prepend": "a"}]
    check_normalizer({"normalizer": {"normalizers": [*members, {"precompiled_charsmap": charsmap("b" * 18)}]}}, bert)
    edit(bert / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": members})
    with AutoEncoder(**STATED).load(bert, "cpu") as model:
        assert model.tokenizer("query").tokenize(["thin films"]).ids.size > 2


def test_json_nested_without_end_is_not_json(bert: Path) -> None:
    (bert / "tokenizer_config.json").write_text('{"a":' * 100_000)
    assert "tokenizer_config.json: not JSON" in refusal(bert)


def test_a_tokenizer_without_words_is_refused(bert: Path) -> None:
    content = json.loads((bert / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    for vocabulary in ({"<unk>": 3}, special, special | {"Films": 20}, special | {"THIN": 20, "FILMS": 21}):
        edit(bert / "tokenizer.json", model=content["model"] | {"vocab": vocabulary})
        assert re.search("a tokenizer without words.*set encoder.tokenizer", refusal(bert)), vocabulary


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+|[a-z]+)+$!"}, "behavior": "Isolated", "invert": False}},
        {"added_tokens": [{"id": -1, "content": "[PAD]", "special": True}]},
    ],
)
def test_whatever_its_libraries_do_with_a_tokenizer_is_the_fault_of_the_checkpoint(bert: Path, change: dict[str, Any]) -> None:
    edit(bert / "tokenizer.json", **change)
    with pytest.raises(CheckpointError, match="its tokenizer cannot be used.*set encoder.tokenizer"):
        tokenized(bert, "thin films " * 500 + "a" * 500)


@pytest.mark.parametrize(
    "changes",
    [
        {"intermediate_size": "64"},
        {"num_hidden_layers": 1.5},
        {"layer_norm_eps": -1},
        {"num_attention_heads": 0},
        {"vocab_size": -5},
    ],
)
def test_a_configuration_with_wrong_types_is_refused_wherever_the_tokenizer_comes_from(
    bert: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    words = shutil.copytree(bert, tmp_path / "words")
    edit(bert / "config.json", **changes)
    assert str(bert) in refusal(bert)
    said = refusal(bert, tokenizer=words)
    assert any(word in said for word in (next(iter(changes)), "zero", "num_embeddings")), said


def test_a_dtype_that_nobody_knows_is_refused(bert: Path) -> None:
    edit(bert / "config.json", dtype="float13")
    assert "float13" in refusal(bert)


def test_a_token_id_beyond_the_vocabulary_is_refused_and_never_wraps(bert: Path) -> None:
    content = json.loads((bert / "tokenizer.json").read_text())
    edit(bert / "tokenizer.json", model=content["model"] | {"vocab": content["model"]["vocab"] | {"films": (1 << 16) + 5}})
    with pytest.raises(CheckpointError, match="token id 65541, but has .* words.*encoder.tokenizer"):
        tokenized(bert, "thin films")


def tokenized(folder: Path, text: str) -> Any:
    with AutoEncoder(**STATED).load(folder, "cpu") as model:
        return model.tokenizer("query").tokenize([text])


def test_a_vocabulary_file_without_words_is_refused(bert: Path) -> None:
    for path in bert.glob("tokenizer*"):
        path.unlink()
    (bert / "vocab.json").write_text("{}")
    (bert / "merges.txt").write_text("#version: 0.2\n")
    edit(bert / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", model_max_length=64, unk_token="<unk>")
    assert re.search("a tokenizer without words|cannot load its tokenizer", refusal(bert))
