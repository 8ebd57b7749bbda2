"""Adapters within a limit of bytes: those in use stay loaded, and users are served in order."""

import threading
from pathlib import Path

import pytest
import torch

from catalogue.parameters import Lora
from engine.adapters.adapter import Adapter, Layer
from engine.adapters.adapters import Adapters
from engine.errors import LoadError, LoraUnusable, RequestInvalid
from engine.request import GenerationRequest

BYTES = 8  # of each adapter


class FakeReader:
    """Reads adapters of two numbers; counts its reads, and can be made to wait."""

    def __init__(self) -> None:
        self.read_names: list[str] = []
        self.may_end = threading.Event()
        self.may_end.set()
        self.has_begun = threading.Event()

    def num_bytes(self, path: Path) -> int:
        if path.name == "torn":
            raise OSError(5, "Input/output error", "/secret/place")
        return BYTES

    def read(self, name: str, path: Path) -> Adapter:
        self.read_names.append(path.name)
        self.has_begun.set()
        assert self.may_end.wait(10)
        if path.name == "foreign":
            raise LoraUnusable(f"loras: {name!r} cannot be used")
        one = torch.zeros(1, 1)
        return Adapter(name, {"unet": {"layer": Layer(one, one, 1.0)}})


def absent() -> Path:
    raise LoadError("its file does not exist")


def adapters(reader: FakeReader, num: int) -> Adapters:
    names = ("a", "b", "c", "torn", "foreign")
    files = {name: (lambda name=name: Path(name)) for name in names}
    return Adapters(reader, {**files, "absent": absent}, num * BYTES)


def held(kept: Adapters, user: object, *names: str) -> bool:
    return kept.hold(user, [Lora(name) for name in names], may_wait=True) is not None


def test_an_adapter_is_read_once_while_it_is_loaded() -> None:
    reader = FakeReader()
    kept = adapters(reader, 2)
    for user in ("one", "two"):
        assert held(kept, user, "a", "b")
        kept.release(user, ["a", "b"])
    assert reader.read_names == ["a", "b"]
    assert kept.num_bytes == 2 * BYTES


def test_the_least_recently_used_adapter_not_in_use_is_evicted() -> None:
    kept = adapters(FakeReader(), 2)
    assert held(kept, "one", "a")
    assert held(kept, "two", "b")
    kept.release("two", ["b"])
    assert held(kept, "three", "c")
    assert kept.names == ["a", "c"], "a is older than b, and in use"


def test_an_adapter_of_two_users_stays_until_both_release_it() -> None:
    kept = adapters(FakeReader(), 1)
    assert held(kept, "one", "a")
    assert held(kept, "two", "a")
    kept.release("one", ["a"])
    assert not held(kept, "three", "b")
    kept.release("two", ["a"])
    assert held(kept, "three", "b")


def test_a_user_that_waits_for_room_is_served_before_later_ones() -> None:
    kept = adapters(FakeReader(), 1)
    assert held(kept, "one", "a")
    assert not held(kept, "two", "b")
    assert not held(kept, "three", "a"), "else users of a could block b for ever"
    kept.release("one", ["a"])
    assert not held(kept, "three", "a")
    assert held(kept, "two", "b")
    kept.release("two", ["b"])
    assert held(kept, "three", "a")


def test_a_user_that_leaves_the_queue_does_not_block_it() -> None:
    kept = adapters(FakeReader(), 1)
    assert held(kept, "one", "a")
    assert not held(kept, "two", "b")
    kept.leave_queue("two")
    assert held(kept, "three", "a")


def test_freeing_memory_evicts_adapters_not_in_use() -> None:
    kept = adapters(FakeReader(), 2)
    assert held(kept, "one", "a")
    assert held(kept, "two", "b")
    kept.release("two", ["b"])
    kept.free()
    assert kept.names == ["a"]


@pytest.mark.parametrize("name", ["torn", "foreign", "absent"])
def test_an_adapter_that_cannot_be_read_is_named_and_not_loaded(name: str) -> None:
    kept = adapters(FakeReader(), 2)
    with pytest.raises(LoraUnusable, match=f"'{name}' cannot be used") as raised:
        held(kept, "one", "a", name)
    assert "secret" not in str(raised.value)
    assert held(kept, "two", "b", "c"), "adapters that the failed request has read are not in use"


def test_adapters_above_the_limit_are_refused_without_waiting() -> None:
    with pytest.raises(LoraUnusable, match="'a', 'b' would use 16 bytes, more than max_lora_bytes"):
        held(adapters(FakeReader(), 1), "one", "a", "b")


def test_an_unknown_name_is_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(RequestInvalid, match="no adapter 'd'; the model has a, b, c"):
        adapters(FakeReader(), 1).check(
            GenerationRequest("m", "x", 64, 64, 1, 1.0, 0, loras=[Lora("a"), Lora("d")])
        )


def test_a_user_that_may_not_wait_is_not_blocked_by_a_file_being_read() -> None:
    """The engine thread does not wait: it continues with steps while a caller's thread reads."""
    reader = FakeReader()
    kept = adapters(reader, 3)
    assert held(kept, "one", "a")
    reader.may_end.clear()
    reader.has_begun.clear()
    slow = threading.Thread(target=held, args=(kept, "two", "b"))
    slow.start()
    assert reader.has_begun.wait(10)
    assert kept.hold("three", [Lora("c")], may_wait=False) is None
    assert kept.hold("four", [Lora("a")], may_wait=False) is not None
    kept.release("one", ["a"])
    kept.free()
    reader.may_end.set()
    slow.join(10)
    assert kept.names == ["a", "b"]
    assert kept.hold("three", [Lora("c")], may_wait=False) is not None
