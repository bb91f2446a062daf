"""Collections in Tevatron's and Asyncval's forms: JSON lines or Parquet, texts or token ids."""

from dataclasses import replace

from pydantic import model_validator

from dr_validate.component import UserPath, component
from dr_validate.dataset.build import Collection
from dr_validate.dataset.locate import OwnFiles, existing_folder, folder_name, locate, variants
from dr_validate.dataset.read import Problems
from dr_validate.dataset.records import hold_positives
from dr_validate.errors import DatasetError


@component
class TevatronDataset(OwnFiles):
    """`docid, title, text` and `query_id, query` (Tevatron), or `text_id, text` with text or token ids (Asyncval).

    From a folder by default names (`corpus.jsonl`, `corpus.parquet` or a folder `corpus/` of shards; `queries.*`; `qrels.*`),
    or from own files, which then need no `path`. Without qrels, the `positive_passages` of the queries are relevant.
    """

    path: UserPath | None = None

    @model_validator(mode="after")
    def _says_where(self) -> "TevatronDataset":
        missing = [key for key in ("corpus", "queries", "qrels") if getattr(self, key) is None]
        if self.path is None and (self.corpus is None or self.queries is None):
            raise ValueError(f"got neither path nor {', '.join(missing)}; set dataset.path to a folder, or all three to files")
        return self

    def collection(self) -> Collection:
        folder = existing_folder(self.path)
        rows = ("jsonl", "json", "parquet", "tsv")
        places = {
            "corpus": [*variants(folder, *(f"corpus.{ending}" for ending in rows)), folder / "corpus"],
            "queries": [*variants(folder, *(f"queries.{ending}" for ending in rows)), folder / "queries"],
            "qrels": variants(folder, "qrels.tsv", "qrels.txt", "qrels.trec", "qrels.jsonl", "qrels.parquet"),
        }
        given = self
        if self.qrels is None and not any(place.exists() for place in places["qrels"]):
            at = self.queries or next((place for place in places["queries"] if place.exists()), None)
            if at is not None and hold_positives(locate("queries", at, [], Problems("queries"))):
                given = replace(self, qrels=at)
            elif self.path is None:
                raise DatasetError(
                    "dataset.qrels: not set, and the queries have no positive_passages; set dataset.qrels to a file"
                )
        named = self.path or self.corpus
        assert named is not None, "checked at birth"
        return given.collect(self.name or folder_name(named), places)
