"""A real, small training: a two-layer encoder and its WordPiece tokenizer, from scratch, on docstrings of the standard library.

`transformers.Trainer` with in-batch negatives (query = summary line, document = the rest of the docstring) writes a checkpoint
every SAVE_EVERY steps; scripts/demo.sh validates them meanwhile. Test queries are never trained on.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from dr_validate.dataset.pydoc import training_pairs

QUERY_LENGTH, DOCUMENT_LENGTH = 32, 96
TEMPERATURE = 0.05
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint-N folders")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--report-to", choices=["none", "wandb"], default="none", help="wandb obeys WANDB_* variables")
    options = parser.parse_args()
    set_seed(options.seed)

    pairs = training_pairs(options.seed)
    tokenizer = train_tokenizer([text for pair in pairs for text in pair])
    model = BertModel(small_bert(len(tokenizer)), add_pooling_layer=False)
    trainer = InBatchNegativesTrainer(
        model=model,
        args=training_arguments(options),
        train_dataset=[{"query": query, "document": document} for query, document in pairs],
        data_collator=PairCollator(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer of 8,000 pieces."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=8000, special_tokens=SPECIAL_TOKENS))
    ends = [("[CLS]", core.token_to_id("[CLS]")), ("[SEP]", core.token_to_id("[SEP]"))]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=DOCUMENT_LENGTH, **names)


def small_bert(vocabulary: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=DOCUMENT_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def training_arguments(options: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        save_steps=options.save_every,
        per_device_train_batch_size=options.batch_size,
        learning_rate=1e-3,
        warmup_steps=20,
        logging_steps=options.save_every,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        report_to=options.report_to,
        use_cpu=True,
        seed=options.seed,
        disable_tqdm=True,
    )


class PairCollator:
    """Pairs of texts to two padded batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def __call__(self, pairs: list[dict[str, str]]) -> dict[str, Any]:
        return {
            side: self.tokenizer(
                [pair[side] for pair in pairs],
                truncation=True,
                max_length=length,
                padding=True,
                return_tensors="pt",
                return_token_type_ids=False,
            )
            for side, length in (("query", QUERY_LENGTH), ("document", DOCUMENT_LENGTH))
        }


class InBatchNegativesTrainer(Trainer):
    """Each query's document against the other documents of its batch; vectors are mean-pooled and normalised."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        queries, documents = embed(model, inputs["query"]), embed(model, inputs["document"])
        loss = torch.nn.functional.cross_entropy(queries @ documents.T / TEMPERATURE, torch.arange(len(queries)))
        return (loss, {"queries": queries}) if return_outputs else loss


def embed(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    hidden = model(**batch).last_hidden_state  # (num_texts, num_tokens, dim)
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


if __name__ == "__main__":
    main()
