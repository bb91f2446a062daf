"""Collections of the Hugging Face hub, or local folders of the same form."""

from pathlib import Path

from dr_validate.component import NameOrPath, component
from dr_validate.dataset.build import open_test_set
from dr_validate.dataset.hub_parts import HubParts, hub_collection
from dr_validate.dataset.locate import Common, folder_name
from dr_validate.values import TestSet


@component
class HubDataset(Common):
    """BEIR's layout on the hub: configs `corpus` and `queries` of `id`, judgements in `<id>-qrels` or a config of `id`.

    `corpus`, `queries` and `qrels` name a config, a data file of the repository (`data/*.parquet`) or an own local file. The
    repository's code is never run. `HF_HUB_OFFLINE=1` uses what was downloaded before.
    """

    id: NameOrPath
    revision: str | None = None
    corpus: NameOrPath = "corpus"
    queries: NameOrPath = "queries"
    qrels: NameOrPath | None = None
    qrels_id: NameOrPath | None = None
    qrels_split: str = "test"

    @property
    def is_here(self) -> bool:
        """Whether it is a folder on this machine: opening it asks no server."""
        return Path(self.id).is_dir()

    def open(self, cache: Path) -> TestSet:
        parts = HubParts(
            id=self.id,
            revision=self.revision,
            corpus=self.corpus,
            queries=self.queries,
            qrels=self.qrels,
            qrels_id=self.qrels_id,
            qrels_split=self.qrels_split,
        )
        common = {"missing_judged": self.missing_judged, "ignore_identical_ids": self.ignore_identical_ids}
        return open_test_set(hub_collection(self.name or folder_name(Path(self.id)), parts, cache, **common), cache)
