"""What all data sets share (`Common`, and `OwnFiles` for those made of files), and where the parts of one are: at the default
places, in the user's own files, or at URLs."""

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dr_validate.component import component
from dr_validate.dataset.build import Collection, Judge, MissingJudged, open_test_set
from dr_validate.dataset.read import MSMARCO_V2, Problems
from dr_validate.dataset.records import DOCUMENT, QUERY, Entry, Judgement, Part, entry_part, judgement_part
from dr_validate.dataset.storage import File, UserFiles, is_url, remote_files
from dr_validate.errors import DatasetError
from dr_validate.values import TestSet

# The name is part of metric keys (val/<dataset>/<metric>), where a slash or a space would change their meaning.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
SHARD_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".ndjson", ".ndjson.gz", ".parquet", ".tsv", ".tsv.gz")


@component
class Common:
    """Settings of every data set."""

    name: Name | None = None
    ignore_identical_ids: bool = False  # never return the document whose id is the query's (ArguAna, Quora)
    missing_judged: MissingJudged = "error"  # judged documents that are not in the corpus

    def check(self) -> None:
        """See `Dataset.check`: by default nothing is known without reading."""

    def collected(
        self, name: str, documents: Part[Entry], queries: Part[Entry], judgements: Part[Judgement] | Judge
    ) -> Collection:
        """These parts, and what to do about gaps in them."""
        return Collection(
            name=name,
            documents=documents,
            queries=queries,
            judgements=judgements,
            missing_judged=self.missing_judged,
            ignore_identical_ids=self.ignore_identical_ids,
        )


@component
class OwnFiles(Common):
    """Settings of data sets whose parts are files: each can be pointed elsewhere (a file, a folder of shards, a pattern that
    names some, or a URL of any of these)."""

    corpus: UserFiles | None = None
    queries: UserFiles | None = None
    qrels: UserFiles | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is files on this machine: opening it asks no server."""
        return not any(is_url(place) for place in (self.corpus, self.queries, self.qrels))

    def check(self) -> None:
        """See `Dataset.check`."""
        self.collection()

    def open(self, cache: Path) -> TestSet:
        """See `Dataset.open`."""
        return open_test_set(self.collection(), cache)

    def collection(self) -> Collection:
        """Where its parts are. Raises DatasetError for those that are not there."""
        raise NotImplementedError  # each data set of files has its own

    def collect(self, name: str, places: Mapping[str, Sequence[Path]]) -> Collection:
        """The parts from own files, else from the first of `places` that exists. Raises DatasetError for all gaps."""
        problems = Problems(name)
        corpus = locate("corpus", self.corpus, places["corpus"], problems)
        queries = locate("queries", self.queries, places["queries"], problems)
        qrels = locate("qrels", self.qrels, places["qrels"], problems)
        problems.stop_if_any()
        return self.collected(name, entry_part(corpus, DOCUMENT), entry_part(queries, QUERY), judgement_part(qrels))


def locate(key: str, own: Path | str | None, places: Sequence[Path], problems: Problems) -> tuple[File, ...]:
    """The files of one part, in the order of their names; a folder stands for its shards. `own`: see `UserFiles`."""
    if own is not None and (isinstance(own, str) or (glob.has_magic(str(own)) and not own.exists())):
        return _named_by(key, own, problems)
    if own is not None:
        places = [own]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        among = f"found none of {', '.join(place.name for place in places)} in {places[0].parent}"
        looked = among if own is None else f"no such file or folder: {own}"
        problems.add(f"dataset.{key}", f"{looked}; set dataset.{key} to where {_them(key)}{_others(places)}")
        return ()
    files = [found] if found.is_file() else shards(found)
    if not files:
        problems.add(f"dataset.{key}", f"the folder {found} holds no file ending in one of {', '.join(SHARD_ENDINGS)}")
    return tuple(files)


def _named_by(key: str, own: Path | str, problems: Problems) -> tuple[File, ...]:
    """The files that a URL or a pattern names."""
    files: list[File] = []
    try:
        if isinstance(own, str):
            files += remote_files(own, SHARD_ENDINGS)
        else:
            matching = Path(own.anchor).glob(str(own.relative_to(own.anchor)))
            files += sorted(file for file in matching if file.is_file() and not file.name.startswith("."))
    except DatasetError as error:
        problems.add(f"dataset.{key}", str(error))
        return ()
    if not files:
        problems.add(f"dataset.{key}", f"no file matches {own}; set dataset.{key} to where {_them(key)}")
    return tuple(files)


def existing_folder(path: Path | None) -> Path:
    """`path`, or the working directory where there is none. Raises DatasetError where it is no folder."""
    if path is None:
        return Path()
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DatasetError(f"dataset.path: {path} {what}; set it to the folder that holds corpus, queries and qrels")
    return path


def folder_name(place: Path | str) -> str:
    """A data set's name from its folder, or from that of a pattern, in the characters that a metric's name may have."""
    path = Path(place.partition("://")[2] if isinstance(place, str) else place.absolute())
    while glob.has_magic(path.name):
        path = path.parent
    name = path.name if isinstance(place, str) else path.resolve().name
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).lstrip("._+-") or "dataset"


def variants(folder: Path, *names: str) -> list[Path]:
    """Each name in `folder`, plain before gzipped."""
    return [folder / variant for name in names for variant in (name, f"{name}.gz")]


def shards(folder: Path) -> list[Path]:
    """The files of a folder that stands for one part, by their names."""
    named = (file for file in folder.iterdir() if file.name.endswith(SHARD_ENDINGS) or MSMARCO_V2.fullmatch(file.name))
    return sorted(file for file in named if not file.name.startswith("."))


def _them(key: str) -> str:
    return "it is" if key == "corpus" else "they are"


def _others(places: Sequence[Path]) -> str:
    """Same-kind neighbours of what is missing: the other splits of qrels, above all."""
    folder, ending = places[0].parent, places[0].suffix
    names = sorted(file.name for file in folder.glob(f"*{ending}")) if folder.is_dir() else []
    return f" (there are {', '.join(names[:8])})" if names else ""
