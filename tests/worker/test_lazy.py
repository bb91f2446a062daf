import contextlib
from collections.abc import Iterator

from dr_validate.stages import Model
from dr_validate.worker.encoding import LazyModel
from tests.engine.by_hand import SumOfEmbeddings


def test_a_model_is_loaded_once_and_says_so_and_only_if_it_is_needed() -> None:
    events = []

    @contextlib.contextmanager
    def load() -> Iterator[Model]:
        events.append("load")
        yield SumOfEmbeddings()
        events.append("free")

    with LazyModel(load, lambda: events.append("loaded")):
        pass
    assert events == []
    with LazyModel(load, lambda: events.append("loaded")) as model:
        assert model.dim == model.dim > 0
    assert events == ["load", "loaded", "free"]
