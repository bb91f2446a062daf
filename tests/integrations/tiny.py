"""Tiny trainings on the processor: a transformers Trainer that learns a BEIR folder by heart, a step in milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from dr_validate.integrations.checkpoints import checkpoints_in

STATED = ["dataset=beir", "tracker=none", "metrics=[mrr@10]", "device=cpu", "encoder.pooling=mean", "encoder.normalize=true"]
STATED += ["fidelity.baseline=off"]


class Learner(transformers.Trainer):
    """In-batch negatives; `losses` are those of all steps. `hold(step)` is called after each."""

    losses: list[float]
    hold: Any = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        queries, documents = (embed(model, inputs[side]) for side in ("query", "document"))
        loss = torch.nn.functional.cross_entropy(queries @ documents.T / 0.2, torch.arange(len(queries)))
        self.losses.append(float(loss.detach()))
        return (loss, {"queries": queries}) if return_outputs else loss


def loaded(folder: Path) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    model: Any = transformers.AutoModel.from_pretrained(str(folder), add_pooling_layer=False)
    return model, transformers.AutoTokenizer.from_pretrained(str(folder))


class Hold(transformers.TrainerCallback):
    """Calls `before(step)` at the end of each step, before later callbacks."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self.before(state.global_step)


def embed(model: Any, batch: Any) -> torch.Tensor:
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def pairs_of(collection: Path) -> list[dict[str, str]]:
    texts = [json.loads(line)["text"] for line in (collection / "corpus.jsonl").read_text().splitlines()]
    queries = [json.loads(line)["text"] for line in (collection / "queries.jsonl").read_text().splitlines()]
    return [{"query": query, "document": text} for query, text in zip(queries, texts, strict=False)]


def learner(bert: tuple[Any, Any], collection: Path, out: Path, **arguments: Any) -> Learner:
    """60 steps, saved every 10; at a rate with which later is not always better."""
    model, tokenizer = bert

    def collate(rows: list[dict[str, str]]) -> dict[str, Any]:
        sides: dict[str, Any] = {}
        for side in ("query", "document"):
            texts = [row[side] for row in rows]
            sides[side] = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        return sides

    given: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 10, "metric_for_best_model": "mrr@10"}
    given |= {"load_best_model_at_end": True, "greater_is_better": True, "save_steps": 10, "max_steps": 60}
    given |= {"output_dir": str(out), "learning_rate": 3e-2, "logging_steps": 10, "report_to": "none", "disable_tqdm": True}
    given |= {"remove_unused_columns": False, "use_cpu": True, "dataloader_pin_memory": False, "seed": 5}
    given |= {"per_device_train_batch_size": 8, "lr_scheduler_type": "constant"}
    rows = pairs_of(collection)
    made = Learner(
        model=model,
        args=transformers.TrainingArguments(**given | arguments),
        train_dataset=rows,
        eval_dataset=rows[:1],
        data_collator=collate,
        processing_class=tokenizer,
    )
    made.losses = []
    return made


def offline(model: Any, tokenizer: Any, collection: Path) -> float:
    """mrr@10 over the whole collection, computed here."""
    rows = [
        [json.loads(line) for line in (collection / name).read_text().splitlines()]
        for name in ("queries.jsonl", "corpus.jsonl")
    ]
    model.eval()
    with torch.no_grad():
        encoded = [[row["text"] for row in side] for side in rows]
        queries, documents = (
            embed(model, tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)) for texts in encoded
        )
    scores = queries @ documents.T  # (num_queries, num_documents); query n is about document n
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1)
    return float(torch.where(ranks <= 10, 1 / ranks, 0.0).mean())


def told(state: Any, key: str = "eval_mrr@10") -> dict[int, float]:
    """Step -> value, as log_history has them."""
    return {row["step"]: row[key] for row in state.log_history if key in row}


def same_weights(model: Any, folder: str | None) -> bool:
    assert folder is not None
    saved, mine = load_file(Path(folder) / "model.safetensors"), model.state_dict()
    return all(torch.equal(one, mine[name]) for name, one in saved.items())


def saved_steps(out: Path) -> list[int]:
    return list(checkpoints_in(out))
