"""Names to lazily imported objects: shipped tables extended by entry points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from seqtune.errors import SeqtuneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Args:
        name: What a recipe writes.
        target: `"module:attribute"`, imported at first use.
        origin: The distribution that ships it.
    """

    name: str
    target: str
    origin: str

    def load(self) -> Any:
        """Import the target.

        Raises:
            SeqtuneError: The module cannot be imported or lacks the attribute; names the distribution.
        """
        try:
            return load(self.target)
        except (ImportError, AttributeError) as error:
            raise SeqtuneError(
                f"'{self.name}' cannot be loaded: {error}",
                where=f"{self.target}, shipped by {self.origin}",
                hint=f"reinstall or mend the distribution '{self.origin}'",
            ) from error


def load(target: str) -> Any:
    """The object a `"module:attribute"` string names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


class Registry:
    """The names of one kind (`objectives`, `packings`, …): a shipped table plus the entry points `seqtune.<kind>`.

    Nothing registers by being imported, and nothing is imported before it is asked for.
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every entry by name.

        Raises:
            SeqtuneError: Two distributions claim one name; both are named.
        """
        found = {name: Entry(name, target, "seqtune") for name, target in self._table.items()}
        for point in entry_points(group=f"seqtune.{self.kind}"):
            origin = point.dist.name if point.dist else "an unknown distribution"
            if point.name in found:
                raise SeqtuneError(
                    f"'{point.name}' is registered twice in {self.kind}",
                    where=f"{found[point.name].origin} and {origin}",
                    hint="uninstall one of them or ask its author to rename it",
                )
            found[point.name] = Entry(point.name, point.value, origin)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.entries))

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def load(self, name: str) -> Any:
        """The object registered under `name`.

        Raises:
            SeqtuneError: The name is unknown (with the nearest known one) or its module cannot be imported.
        """
        if name not in self.entries:
            raise SeqtuneError(f"unknown name '{name}' in {self.kind}", hint=did_you_mean(name, self.entries))
        return self.entries[name].load()
