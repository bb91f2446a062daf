"""Collections in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dr_validate.component import component
from dr_validate.dataset.build import open_test_set
from dr_validate.dataset.locate import OwnFiles, existing_folder, folder_name, variants
from dr_validate.values import TestSet


@component
class BeirDataset(OwnFiles):
    """A BEIR folder; files may be gzipped, judgements may be TREC's four columns. Named after the folder by default."""

    path: Path
    split: Annotated[str, Field(pattern=r"^[^/\\]+$")] = "test"

    def open(self, cache: Path) -> TestSet:
        folder = existing_folder(self.path)
        places = {
            "corpus": variants(folder, "corpus.jsonl"),
            "queries": variants(folder, "queries.jsonl"),
            "qrels": variants(folder / "qrels", f"{self.split}.tsv"),
        }
        return open_test_set(self.collect(self.name or folder_name(folder), places), cache)
