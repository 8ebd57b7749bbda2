"""The two clients offer the same, and the package says what it holds."""

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import get_args, get_origin, get_type_hints

from client import calotype
from client.calotype import AsyncClient, Client

NAMES = {"close": "aclose"}


def surface(kind: type) -> dict[str, object]:
    return {name: member for name, member in vars(kind).items() if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_parameters_and_results() -> None:
    sync, asynchronous = surface(Client), surface(AsyncClient)
    assert {NAMES.get(name, name) for name in sync} == set(asynchronous)
    for name, member in sync.items():
        if not inspect.isfunction(member):
            continue
        other = asynchronous[NAMES.get(name, name)]
        assert inspect.isfunction(other)
        assert inspect.signature(member).parameters == inspect.signature(other).parameters, name
        expected, returned = get_type_hints(member)["return"], get_type_hints(other)["return"]
        if get_origin(expected) is Iterator:
            assert (get_origin(returned), get_args(returned)) == (AsyncIterator, get_args(expected)), name
        else:
            assert inspect.iscoroutinefunction(other), name
            assert returned == expected, name
        assert member.__doc__ == other.__doc__, name


def test_every_name_that_the_package_offers_is_there() -> None:
    assert sorted(calotype.__all__) == sorted(set(calotype.__all__))
    for name in calotype.__all__:
        assert getattr(calotype, name) is not None
