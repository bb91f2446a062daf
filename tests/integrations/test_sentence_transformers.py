"""The trainer of sentence-transformers with a watcher beside it, and what is loaded at its end."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dr_validate.errors import SetupError
from dr_validate.integrations.checkpoints import check_loaded
from dr_validate.integrations.publish import publish
from dr_validate.integrations.transformers import AsyncValidation
from tests.integrations.tiny import pairs_of, saved_steps, told

KEY = "eval_tiny_cosine_mrr@10"


@pytest.mark.usefixtures("warm_watcher")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_its_trainer_gets_the_key_it_asks_for_and_loads_the_best_and_its_evaluator_never_runs(
    sentence_transformer: Any, harder: Path, tmp_path: Path
) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    class Never(InformationRetrievalEvaluator):  # type: ignore[misc]  # untyped here
        def __call__(self, *args: Any, **more: Any) -> Any:
            raise AssertionError("it blocks the training")

    rows = pairs_of(harder)
    queries, documents = ({f"{n}": row[side] for n, row in enumerate(rows)} for side in ("query", "document"))
    out = tmp_path / "out"
    given: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 10, "save_steps": 10, "max_steps": 50, "use_cpu": True}
    given |= {"metric_for_best_model": KEY, "load_best_model_at_end": True, "report_to": "none", "learning_rate": 3e-2}
    given |= {"save_total_limit": 2, "disable_tqdm": True, "dataloader_pin_memory": False, "lr_scheduler_type": "constant"}
    given |= {"per_device_train_batch_size": 8, "logging_steps": 10}
    trainer = SentenceTransformerTrainer(
        model=sentence_transformer,
        args=SentenceTransformerTrainingArguments(output_dir=str(out), **given),
        train_dataset=Dataset.from_list([{"anchor": row["query"], "positive": row["document"]} for row in rows]),
        loss=MultipleNegativesRankingLoss(sentence_transformer),
        evaluator=Never(queries, documents, {key: {key} for key in queries}, name="tiny"),
    )
    overrides = ["dataset=beir", f"dataset.path={harder}", "tracker=none", "metrics=[mrr@10,hit_rate@1]", "device=cpu"]
    AsyncValidation([*overrides, "fidelity.baseline=off"], backpressure="all").attach(trainer)
    trainer.train()
    values = told(trainer.state, KEY)
    assert sorted(values) == [10, 20, 30, 40, 50]
    assert sorted(told(trainer.state, "eval_tiny_cosine_accuracy@1")) == sorted(values)
    best = max(values, key=lambda step: (values[step], -step))
    assert trainer.state.best_global_step == best
    assert saved_steps(out) == sorted({best, 50, *([40] if best == 50 else [])})
    saved = SentenceTransformer(str(out / f"checkpoint-{best}"), device="cpu")
    vectors = [one.encode(["compiler 3 socket"]) for one in (saved, trainer.model)]
    assert (vectors[0] == vectors[1]).all()


def test_a_model_that_is_not_the_best_one_is_noticed(sentence_transformer: Any, tmp_path: Path) -> None:
    folder = publish(sentence_transformer, 10, tmp_path)
    check_loaded(sentence_transformer, folder, "")
    next(sentence_transformer.parameters()).data[3] += 1
    with pytest.raises(SetupError, match=r"checkpoint-10, but the trainer has not loaded it.*1 of its"):
        check_loaded(sentence_transformer, folder, "")
    with pytest.raises(SetupError, match="changed since"):
        check_loaded(sentence_transformer, folder, "0" * 64)


def test_weights_that_tevatrons_trainer_did_not_load_are_loaded_into_its_encoder(bert: Any, tmp_path: Path) -> None:
    import torch

    class EncoderModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.pooling, self.normalize = bert[0], "cls", True

    model = EncoderModel()
    folder = publish(model, 10, tmp_path, tokenizer=bert[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    check_loaded(model, folder, "")
    saved, mine = load_file(folder / "model.safetensors"), model.encoder.state_dict()
    assert all(torch.equal(one, mine[name]) for name, one in saved.items())
