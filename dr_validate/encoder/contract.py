"""Read what a checkpoint folder says it is, join it with what is stated, or refuse and name the keys to set. JSON only."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from dr_validate.encoder.backbone import Backbone, length_warnings, max_length, read_backbone
from dr_validate.encoder.checks import USE_STEP_VERSION, check_no_link_leaves, check_unused, read_object, weight_shapes
from dr_validate.encoder.modules import modules_tower
from dr_validate.encoder.spec import (
    CONTRACT_FILE,
    Contract,
    EncoderSpec,
    Head,
    Kind,
    PoolingName,
    TowerSpec,
    contradiction,
    encoder_settings,
)
from dr_validate.errors import CheckpointError, NotStated
from dr_validate.values import Side

QUERY_FOLDER = "query_model"
DOCUMENT_FOLDERS = ("passage_model", "document_model")
# Of DPR's two encoders: the class, and what its weights begin with.
DPR: Mapping[Side, tuple[str, str]] = {
    "query": ("DPRQuestionEncoder", "question_encoder"),
    "document": ("DPRContextEncoder", "ctx_encoder"),
}


def read_contract(folder: Path, stated: EncoderSpec) -> Contract:
    """The contract of the checkpoint in `folder`; what is stated wins over what the checkpoint says, and of that what its
    dr_validate.json says (see `integrations/publish.py`) over the rest.

    Raises CheckpointError where the folder cannot be used, NotStated where pooling, normalisation, a length, a prefix or a
    base model are said nowhere: the message names the `encoder.` keys that state them.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    check_no_link_leaves(folder)
    said = encoder_settings(read_object(folder / CONTRACT_FILE), str(folder / CONTRACT_FILE))
    warnings = [one for key, value in said.items() for one in contradiction(key, getattr(stated, key), value, CONTRACT_FILE)]
    joined = replace(stated, **{key: value for key, value in said.items() if getattr(stated, key) is None})
    found = _read(folder, joined)
    return replace(found, query=replace(found.query, warnings=(*warnings, *found.query.warnings))) if warnings else found


def _read(folder: Path, stated: EncoderSpec) -> Contract:
    if (folder / QUERY_FOLDER).is_dir():
        return _two_towers(folder, stated)
    kind: Kind = "sentence-transformers" if (folder / "modules.json").is_file() else "transformers"
    query, document = (_tower(folder, folder, side, stated) for side in ("query", "document"))
    return Contract(kind=kind, query=query, document=document)


def _two_towers(folder: Path, stated: EncoderSpec) -> Contract:
    present = [folder / name for name in DOCUMENT_FOLDERS if (folder / name).is_dir()]
    if len(present) != 1:
        wanted = " or ".join(DOCUMENT_FOLDERS)
        raise CheckpointError(f"{folder}: {QUERY_FOLDER} needs exactly one of {wanted} beside it, found {len(present)}")
    return Contract(
        kind="two towers",
        query=_tower(folder / QUERY_FOLDER, folder, "query", stated),
        document=_tower(present[0], folder, "document", stated),
    )


def _tower(folder: Path, root: Path, side: Side, stated: EncoderSpec) -> TowerSpec:
    if (folder / "modules.json").is_file():
        return modules_tower(folder, root, side, stated)
    backbone = read_backbone(folder, root, stated)
    if backbone.config["model_type"] == "dpr":
        return _dpr_tower(backbone, folder, side, stated)
    if heads := _ance_heads(backbone) or _tevatron_heads((folder, root), side):
        return _headed_tower(backbone, heads, side, stated)
    return _plain_tower(backbone, folder, side, stated)


def _plain_tower(backbone: Backbone, folder: Path, side: Side, stated: EncoderSpec) -> TowerSpec:
    """A folder of transformers alone: pooling and normalisation are not in it, so both must be stated."""
    lacking = [f"encoder.{key}" for key in ("pooling", "normalize") if getattr(stated, key) is None]
    if stated.pooling is None or stated.normalize is None:
        raise NotStated(
            f"{folder}: a plain transformers folder does not say how token vectors become one vector, and a wrong guess gives "
            f"wrong scores without an error; set {' and '.join(lacking)} as in training; if training saved modules.json, "
            f"{USE_STEP_VERSION}"
        )
    return _made(backbone, side, stated, pooling=stated.pooling, normalize=stated.normalize)


def _dpr_tower(backbone: Backbone, folder: Path, side: Side, stated: EncoderSpec) -> TowerSpec:
    """One of DPR's two encoders, whose classes say what a vector is: that of the first token, projected if `projection_dim`."""
    name, key = DPR[side]
    shapes = weight_shapes(folder)
    if not any(weight.startswith(f"{key}.bert_model.") for weight in shapes):
        raise CheckpointError(
            f"{folder}: {side} vectors need a {name} of DPR, and this folder holds none (no weights {key}.bert_model.*): put "
            "the DPRQuestionEncoder into query_model/ and the DPRContextEncoder into passage_model/ of one folder. If one "
            "encoder serves both sides, save its BERT alone (its bert_model, with save_pretrained)"
        )
    heads: tuple[Head, ...] = ()
    if width := backbone.config.get("projection_dim"):
        sizes = int(backbone.config["hidden_size"]), int(width)
        prefix = f"{key}.encode_proj."
        heads = (Head(kind="dense", folder=folder, in_features=sizes[0], out_features=sizes[1], weights_prefix=prefix),)
    used = (f"{key}.bert_model.", *(head.weights_prefix for head in heads))
    check_unused(folder, [weight for weight in shapes if not weight.startswith(used)], "dpr")
    warnings = [*contradiction("pooling", stated.pooling, "cls"), *contradiction("normalize", stated.normalize, False)]
    found = _made(backbone, side, stated, pooling=stated.pooling or "cls", normalize=bool(stated.normalize))
    return replace(found, heads=heads, weights_prefix=f"{key}.bert_model.", warnings=(*warnings, *found.warnings))


def _headed_tower(backbone: Backbone, heads: tuple[Head, ...], side: Side, stated: EncoderSpec) -> TowerSpec:
    """A trainer's own head over the first token, compared by dot product: ANCE's, and Tevatron 1's."""
    warnings = [*contradiction("pooling", stated.pooling, "cls"), *contradiction("normalize", stated.normalize, False)]
    found = _made(backbone, side, stated, pooling=stated.pooling or "cls", normalize=bool(stated.normalize))
    return replace(found, heads=heads, warnings=(*warnings, *found.warnings))


def _ance_heads(backbone: Backbone) -> tuple[Head, ...]:
    """ANCE keeps a linear layer and a layer norm beside the transformer (`RobertaDot_NLL_LN` of github.com/microsoft/ANCE)."""
    shapes = weight_shapes(backbone.weights)
    wanted = {"embeddingHead.weight", "embeddingHead.bias", "norm.weight", "norm.bias"}
    if backbone.weights_prefix or backbone.adapter is not None or not wanted <= shapes.keys():
        return ()
    (out, width), place = shapes["embeddingHead.weight"], backbone.weights
    dense = Head(kind="dense", folder=place, in_features=width, out_features=out, weights_prefix="embeddingHead.")
    return dense, Head(kind="layer_norm", folder=place, out_features=out, weights_prefix="norm.")


def _tevatron_heads(places: Iterable[Path], side: Side) -> tuple[Head, ...]:
    """Tevatron 1 keeps a linear layer for each side, or one for both, in `pooler.pt` beside `pooler_config.json`."""
    folder = next((place for place in places if (place / "pooler_config.json").is_file()), None)
    if folder is None:
        return ()
    file = "pooler.safetensors"
    if not (folder / file).is_file():
        raise CheckpointError(
            f"{folder}: pooler_config.json says that a linear layer makes the vectors, but its weights are a pickle, "
            f"pooler.pt, which can run code and is never loaded; convert it where you trust it: safetensors.torch.save_file("
            f"{{k: v.clone() for k, v in torch.load('pooler.pt', weights_only=True).items()}}, '{file}')"
        )
    shapes = weight_shapes(folder, file)
    prefix = "linear_q." if side == "query" or "linear_p.weight" not in shapes else "linear_p."
    if len(shape := shapes.get(f"{prefix}weight", ())) != 2:
        raise CheckpointError(f"{folder / file}: holds no {prefix}weight, as the linear layer of Tevatron 1 is named")
    head = Head(kind="dense", folder=folder, file=file, in_features=shape[1], out_features=shape[0], weights_prefix=prefix)
    return (replace(head, bias=f"{prefix}bias" in shapes),)


def _made(backbone: Backbone, side: Side, stated: EncoderSpec, *, pooling: PoolingName, normalize: bool) -> TowerSpec:
    length, origin = max_length(stated, side, {}, backbone.tokenizer, backbone.config)
    return TowerSpec(
        weights=backbone.weights,
        adapter=backbone.adapter,
        tokenizer=backbone.tokenizer,
        config=backbone.config_file,
        weights_prefix=backbone.weights_prefix,
        lower_case=False,
        pooling=(pooling,),
        include_prompt=True,
        heads=(),
        truncate_dim=None,
        normalize=normalize,
        prefix=stated.prefix(side) or "",
        max_length=length,
        max_length_from=origin,
        architecture=backbone.architecture,
        warnings=(*backbone.warnings, *length_warnings(stated, side, {}, backbone.tokenizer)),
    )
