"""Objects that a JSON configuration describes: `{"class_name": ..., "config": {...}}`, from a closed set of classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from lepton_jit.common.naming import snake_case
from lepton_jit.errors import ArgumentError

__all__ = ["ClassRegistry", "Configurable", "Registry", "plain"]

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Configurable:
    """An object that its constructor's arguments describe; `fields` names the attributes that hold them."""

    fields: ClassVar[tuple[str, ...]] = ()

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        return {name: plain(getattr(self, name)) for name in self.fields}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The object that `get_config` described."""
        check_arguments(cls, config)
        return cls(**config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == getattr(other, "get_config")()  # noqa: B009

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def plain(value: Any) -> Any:
    """A constructor's argument as a JSON value."""
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if hasattr(value, "to_config"):
        return value.to_config()
    if isinstance(value, Configurable):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    return value


def check_arguments(cls: type, config: Mapping[str, Any]) -> None:
    """ArgumentError if the constructor has no such arguments, or needs others."""
    if not isinstance(config, Mapping):
        raise ArgumentError(f"{cls.__name__}: expected a configuration, got {config!r}")
    parameters = inspect.signature(cls).parameters
    missing = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in _VARIADIC and n not in config]
    if missing:
        raise ArgumentError(f"{cls.__name__}: expected the arguments {missing}")
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = sorted(str(k) for k in set(config) - set(parameters))
    if unknown:
        raise ArgumentError(f"{cls.__name__}: expected arguments of {list(parameters)}, got {unknown}")


class Registry(Generic[T]):
    """The members of one family, by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._aliases: dict[str, T] = {}

    @property
    def entries(self) -> Mapping[str, T]:
        """Everything by its own name, in the order in which it was entered."""
        return MappingProxyType(self._entries)

    @property
    def aliases(self) -> Mapping[str, T]:
        """Everything that has further names, by these."""
        return MappingProxyType(self._aliases)

    def enter(self, name: str, entry: T) -> T:
        """Enter something under its own name."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name}: expected a name that is free")
        self._entries[name] = entry
        return entry

    def alias(self, **names: T) -> None:
        """Enter further names."""
        self._aliases.update(names)

    def find(self, name: str) -> T | None:
        """Find the member of that name, which may be written in capitals."""
        lower = name.lower()
        places = ((self._entries, name), (self._aliases, name), (self._entries, lower), (self._aliases, lower))
        return next((known[key] for known, key in places if key in known), None)

    def named(self, name: str) -> T:
        """Find the member of that name, or raise ArgumentError."""
        found = self.find(name)
        if found is None:
            raise ArgumentError(f"{self.kind}: expected one of {', '.join(sorted(self._entries))}, got {name!r}")
        return found


class ClassRegistry(Registry[type[T]]):
    """The classes of one family that a name or a configuration may ask for."""

    def register(self, cls: C) -> C:
        """Enter a class under its own name and its name in snake case."""
        known = self.enter(cls.__name__, cast("type[T]", cls))
        self.alias(**{snake_case(cls.__name__): known})
        return cls

    def __contains__(self, cls: type) -> bool:
        return self._entries.get(cls.__name__) is cls

    def deserialize(self, config: Any) -> T:
        """The object that `{"class_name": ..., "config": {...}}` describes."""
        if not isinstance(config, Mapping) or not isinstance(config.get("class_name"), str):
            raise ArgumentError(f"{self.kind}: expected a configuration with a class_name, got {config!r}")
        arguments = config.get("config", {})
        if not isinstance(arguments, Mapping) or not all(isinstance(k, str) for k in arguments):
            raise ArgumentError(f"{self.kind} {config['class_name']}: expected a configuration, got {arguments!r}")
        return self.named(config["class_name"]).from_config(arguments)  # pyright: ignore[reportAttributeAccessIssue]

    def get(self, identifier: Any, base: type[T]) -> T:
        """An object from a name, a class, a configuration, or as it stands."""
        if isinstance(identifier, base):
            return identifier
        if isinstance(identifier, str):
            return self.named(identifier)()
        if isinstance(identifier, type) and issubclass(identifier, base):
            return identifier()
        if isinstance(identifier, Mapping):
            return self.deserialize(identifier)
        raise ArgumentError(
            f"{self.kind}: expected one of {', '.join(sorted(self._entries))} or an instance, got {identifier!r}"
        )
