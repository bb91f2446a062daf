"""MS MARCO as Microsoft distributes it, passages and documents of version 1 and 2, or in BEIR's form from the hub."""

from dataclasses import replace
from pathlib import Path

from pydantic import model_validator

from dr_validate.component import NameOrPath, UserPath, component
from dr_validate.dataset.build import Collection, open_test_set
from dr_validate.dataset.hub import HubDataset
from dr_validate.dataset.locate import Name, OwnFiles, existing_folder, variants
from dr_validate.errors import DatasetError
from dr_validate.values import TestSet

# Names of corpus, queries and qrels, in each of the forms that there are, and of the run over these queries that comes with
# them; a name that is a folder holds shards.
PARTS = ("corpus", "queries", "qrels", "run")
FORMS = (
    (
        ("collection.tsv",),
        ("queries.dev.small.tsv", "queries.dev.tsv"),
        ("qrels.dev.small.tsv", "qrels.dev.tsv"),
        ("top1000.dev.tsv", "top1000.dev"),
    ),
    (("msmarco-docs.tsv",), ("msmarco-docdev-queries.tsv",), ("msmarco-docdev-qrels.tsv",), ("msmarco-docdev-top100",)),
    (("msmarco_v2_passage",), ("passv2_dev_queries.tsv",), ("passv2_dev_qrels.tsv",), ("passv2_dev_top100.txt",)),
    (("msmarco_v2_doc",), ("docv2_dev_queries.tsv",), ("docv2_dev_qrels.tsv",), ("docv2_dev_top100.txt",)),
)


@component
class MsmarcoDataset(OwnFiles):
    """`collection.tsv`, `queries.dev[.small].tsv` and `qrels.dev[.small].tsv` under `path`, or `hub`, e.g. `BeIR/msmarco`.

    Under `path` may be the files of another form in `FORMS`: the first whose corpus is there. Of a document, title and body are
    its text. Only judged queries are used. Other query sets (TREC DL): point `queries` and `qrels` at their files. The run that
    a sampler knows as `shipped` is `top1000.dev[.tsv]`, or the other form's, for the collection's own queries.
    """

    name: Name | None = "msmarco"
    path: UserPath | None = None
    hub: NameOrPath | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "MsmarcoDataset":
        files = [key for key in ("path", "corpus", "queries", "qrels") if getattr(self, key) is not None]
        if self.hub is not None and files:
            raise ValueError(
                f"got hub={self.hub!r} and {', '.join(files)}; the files have no effect beside hub, set one of them"
            )
        if self.revision is not None and self.hub is None:
            raise ValueError(f"got revision={self.revision!r}, which has no effect without hub")
        return self

    @property
    def is_here(self) -> bool:
        """Whether it is files on this machine: opening it asks no server."""
        return super().is_here and (self.hub is None or Path(self.hub).is_dir())

    def check(self) -> None:
        """See `Dataset.check`."""
        if self.hub is None:
            super().check()

    def open(self, cache: Path) -> TestSet:
        """See `Dataset.open`."""
        if self.hub is None:
            return replace(super().open(cache), shipped_run=self._shipped_run())
        # The 6 980 queries that MS MARCO calls dev.small are the split `validation` of BeIR/msmarco-qrels.
        found = HubDataset(
            name=self.name or "msmarco",
            id=self.hub,
            revision=self.revision,
            qrels_split="validation",
            missing_judged=self.missing_judged,
            ignore_identical_ids=self.ignore_identical_ids,
        )
        return open_test_set(found.collection(cache, key="hub"), cache)

    def collection(self) -> Collection:
        """See `OwnFiles.collection`; not of `hub`."""
        if self.path is None and None in (self.corpus, self.queries, self.qrels):
            raise DatasetError(
                "dataset.path: not set, so there is nothing to read; set dataset.path=FOLDER with collection.tsv, "
                "queries.dev.small.tsv and qrels.dev.small.tsv, or dataset.corpus, dataset.queries and dataset.qrels to own "
                "files, or dataset.hub=BeIR/msmarco to download it"
            )
        return self.collect(self.name or "msmarco", {part: self._places()[part] for part in PARTS[:3]})

    def _places(self) -> dict[str, list[Path]]:
        """Where each part may be, of the form whose corpus is there."""
        folder = existing_folder(self.path)
        forms = [[variants(folder, *names) for names in form] for form in FORMS]
        found = next((form for form in forms if any(place.exists() for place in form[0])), forms[0])
        return dict(zip(PARTS, found, strict=True))

    def _shipped_run(self) -> Path | None:
        """What is there for the collection's own queries."""
        if self.path is None or self.queries is not None:
            return None
        return next((place for place in self._places()["run"] if place.is_file()), None)
