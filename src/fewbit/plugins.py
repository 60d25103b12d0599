"""A package whose modules are the ways of doing one thing: a new way is a new file, and its file name is its name."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType

from fewbit.errors import FewbitError


@dataclass(frozen=True)
class Plugins:
    """The modules of a package that define one function or class.

    Attributes:
        package: Its full name.
        defines: The name that each such module has; others of the package are helpers.
        kind: What one is called in errors.
    """

    package: str
    defines: str
    kind: str

    def names(self) -> list[str]:
        """The names there are, sorted."""
        package = importlib.import_module(self.package)
        found = (info.name for info in pkgutil.iter_modules(package.__path__))
        return sorted(name for name in found if hasattr(self._module(name), self.defines))

    def get(self, name: str) -> ModuleType:
        """The module of a name.

        Raises:
            FewbitError: There is none; the message lists what there is.
        """
        names = self.names()
        if name not in names:
            close = get_close_matches(str(name), names, 1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise FewbitError(f"no {self.kind} is called {name!r}; there are {', '.join(names)}{meant}")
        return self._module(name)

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.package}.{name}")
