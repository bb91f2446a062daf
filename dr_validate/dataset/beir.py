"""Collections in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`."""

from typing import Annotated

from pydantic import Field

from dr_validate.component import UserPath, component
from dr_validate.dataset.build import Collection
from dr_validate.dataset.locate import OwnFiles, existing_folder, folder_name, variants


@component
class BeirDataset(OwnFiles):
    """A BEIR folder; files may be gzipped, judgements may be TREC's four columns. Named after the folder by default."""

    path: UserPath
    split: Annotated[str, Field(pattern=r"^[^/\\]+$")] = "test"

    def collection(self) -> Collection:
        folder = existing_folder(self.path)
        places = {
            "corpus": variants(folder, "corpus.jsonl"),
            "queries": variants(folder, "queries.jsonl"),
            "qrels": variants(folder / "qrels", f"{self.split}.tsv"),
        }
        return self.collect(self.name or folder_name(folder), places)
