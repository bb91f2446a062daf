"""Collections of the Hugging Face hub, or local folders of the same form, through the `datasets` library."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dr_validate.component import NameOrPath, component, fingerprint
from dr_validate.dataset.build import Collection, open_test_set
from dr_validate.dataset.locate import Common, folder_name
from dr_validate.dataset.read import PARQUET_BATCH_ROWS, Place, Problems, Row
from dr_validate.dataset.records import (
    DOCUMENT,
    QUERY,
    Entry,
    Judgement,
    Part,
    Rows,
    entries,
    entry_part,
    judgement_part,
    judgements,
)
from dr_validate.errors import DatasetError
from dr_validate.values import TestSet

T = TypeVar("T")


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
        """See `Dataset.open`."""
        return open_test_set(self.collection(cache), cache)

    def collection(self, cache: Path, key: str = "id") -> Collection:
        """Load (or find in the library's own cache) and describe the parts. Raises DatasetError for whatever goes wrong there,
        which names `dataset.<key>` as the setting of the id."""
        hub = _Hub(self, cache, key)
        name = self.name or folder_name(Path(self.id))
        return self.collected(name, hub.entries("corpus", self.corpus), hub.entries("queries", self.queries), hub.judgements())


def _part(loaded: Any, where: str, columns: Sequence[str] | None, parse: Callable[[Rows, Problems], Iterator[T]]) -> Part[T]:
    """The Arrow files that the library keeps stand for the content: their digest makes the fingerprint. `columns`: None for
    all."""
    files = tuple(Path(entry["filename"]) for entry in loaded.cache_files)
    return Part(files=files, read=lambda problems: parse(_rows(loaded, where, columns), problems))


def _rows(loaded: Any, where: str, columns: Sequence[str] | None) -> Iterator[tuple[Place, Row]]:
    present = [column for column in loaded.column_names if columns is not None and column in columns]
    table = loaded.select_columns(present) if present else loaded
    number = 0
    for batch in table.with_format("arrow").iter(batch_size=PARQUET_BATCH_ROWS):
        for row in batch.to_pylist():
            number += 1
            yield Place(where, number, "row"), row


def _own_file(wanted: str) -> Path | None:
    path = Path(wanted)
    return path if path.suffix and path.is_file() else None


class _Hub:
    """One repository, or a local folder that looks like one."""

    def __init__(self, settings: HubDataset, cache: Path, key: str) -> None:
        self._settings, self._key = settings, key
        self._cache = cache / "hub"

    def entries(self, key: str, wanted: str) -> Part[Entry]:
        """The corpus or the queries."""
        fields = DOCUMENT if key == "corpus" else QUERY
        if own := _own_file(wanted):
            return entry_part([own], fields)
        loaded = self._load(key, wanted, [key, wanted, self._settings.qrels_split])
        where = f"{self._settings.id}[{wanted}]"
        return _part(loaded, where, fields.names, lambda rows, problems: entries(rows, fields, problems))

    def judgements(self) -> Part[Judgement]:
        """The judgements: what the settings say, else a config of `id`, else `<id>-qrels`."""
        if self._settings.qrels is not None and (own := _own_file(self._settings.qrels)):
            return judgement_part([own])
        repository, config, pattern = self._qrels_place()
        found = self._load_dataset(repository, config, pattern)
        # The library calls the split of files that were named one by one `train`, whatever is in them.
        splits = ["train"] if pattern is not None else [self._settings.qrels_split]
        loaded = self._split("qrels_split", repository, found, splits)
        return _part(loaded, f"{repository}[{self._settings.qrels_split}]", None, judgements)

    def _load(self, key: str, wanted: str, splits: Sequence[str]) -> Any:
        """The split of config or data file `wanted`: the first of `splits` that exists, else the only one."""
        found = self._load_dataset(self._settings.id, *self._config_or_files(key, wanted))
        if len(found) == 1:
            return next(iter(found.values()))
        return self._split(key, self._settings.id, found, splits)

    def _qrels_place(self) -> tuple[str, str | None, str | None]:
        """Repository, config and data file."""
        parts = self._settings
        if parts.qrels_id is not None:
            return parts.qrels_id, parts.qrels, None
        if parts.qrels is not None:
            return parts.id, *self._config_or_files("qrels", parts.qrels)
        configs = self._configs
        config = next((name for name in ("qrels", "default") if name in configs and len(configs) > 1), None)
        if config is not None:
            return parts.id, config, None
        is_local = Path(parts.id).is_dir()
        if is_local and (pattern := self._data_files(f"qrels/{parts.qrels_split}") or self._data_files("qrels")):
            return parts.id, None, pattern
        return f"{parts.id.rstrip('/')}-qrels", None, None

    def _config_or_files(self, key: str, wanted: str) -> tuple[str | None, str | None]:
        configs = self._configs
        if wanted in configs:
            return wanted, None
        if pattern := self._data_files(wanted):
            return None, pattern
        raise DatasetError(
            f"dataset.{key}: {self._settings.id} has no config or data file {wanted!r}, only the configs {configs}; set "
            f"dataset.{key} to one of them, to a data file of the repository (data/*.parquet), or to a local file"
        )

    @functools.cached_property
    def _configs(self) -> list[str]:
        parts, call = self._settings, _library().get_dataset_config_names
        return self._try(parts.id, lambda: list(call(parts.id, revision=parts.revision)))

    def _data_files(self, wanted: str) -> str | None:
        """A pattern for `load_dataset`: as given if it looks like a path, or what a local folder has under that name."""
        folder = Path(self._settings.id)
        if folder.is_dir():
            candidates = [wanted, f"{wanted}.*"] if "/" in wanted else [wanted, f"{wanted}.*", f"{wanted}/*"]
            return next((c for c in candidates if any(file.is_file() for file in folder.glob(c))), None)
        return wanted if "/" in wanted or Path(wanted).suffix else None

    def _load_dataset(self, repository: str, config: str | None, data_files: str | None = None) -> Any:
        folder = Path(repository)
        local = folder.is_dir()
        return self._try(
            repository,
            lambda: _library().load_dataset(
                str(folder) if local else repository,
                config,
                data_files=data_files,
                revision=self._settings.revision if repository == self._settings.id else None,
                # Downloads belong to the cache that the user's other tools share, copies of local files do not.
                cache_dir=str(self._cache / _state(folder)) if local else None,
            ),
        )

    def _split(self, key: str, where: str, found: Any, splits: Sequence[str]) -> Any:
        chosen = next((split for split in splits if split in found), None)
        if chosen is None:
            raise DatasetError(
                f"dataset.{key}: got {splits[-1]!r}, but {where} has the splits {sorted(found)}; set dataset.{key}"
            )
        return found[chosen]

    def _try(self, repository: str, call: Callable[[], T]) -> T:
        errors = (OSError, ValueError, RuntimeError, TypeError, _library().exceptions.DatasetsError)
        try:
            return call()
        except errors as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise DatasetError(f"dataset.{self._key}: cannot load {repository!r} ({reason}); {_way_out(error)}") from error


def _library() -> Any:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _state(folder: Path) -> str:
    """Changes with any file of a local folder: the library's own cache goes by path and would serve what was there before."""
    stats = [(file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
    return fingerprint({str(file.resolve()): [stat.st_size, stat.st_mtime_ns, stat.st_ino] for file, stat in stats})


def _way_out(error: BaseException) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set: download it where there is a network first, or point at a local folder"
    if "script" in str(error):
        return "its code is never run: use a revision that holds Parquet files (dataset.revision=refs/convert/parquet)"
    return "check the id and the network, or point at a local folder of the same form"
