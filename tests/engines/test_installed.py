"""What is known of modules without running code of theirs."""

from __future__ import annotations

import json
import sys
from types import ModuleType

from airflow_provider_air_executor.system import installed


class _Library:
    """As a library of cffi is: it says that it is a module, and has no ``__dict__``."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return ModuleType


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> object:
        raise RuntimeError(f"{name} is asked for")


def test_the_spec_of_whatever_is_in_the_place_of_a_module() -> None:
    found = installed.spec_of(json)
    assert found is not None
    assert found.name == "json"
    assert isinstance(_Library(), ModuleType)
    assert [installed.spec_of(one) for one in (_Library(), None, 3, _Lazy("lazy"), sys)][:4] == [None] * 4
