"""A function of the user's, by its name: `module:function` or `file.py:function`."""

from __future__ import annotations

import sys
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtune.errors import SeqtuneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def load_function(name: str, field: str) -> Callable[..., Any]:
    """The function a name points at.

    Args:
        name: `package.module:function` or `path/to/file.py:function`.
        field: What messages call the field of the recipe that holds the name.

    Raises:
        SeqtuneError: The module, the file or the function does not exist, importing it fails, or it is not callable.
    """
    place, _, attribute = name.rpartition(":")
    where = f"{field}={name}"
    module = _from_file(Path(place).expanduser(), where) if place.endswith(".py") else _from_module(place, where, field)
    function = getattr(module, attribute, None)
    if function is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SeqtuneError(
            f"'{place}' has no function '{attribute}'", where=where, hint=did_you_mean(attribute, public)
        )
    if not callable(function):
        raise SeqtuneError(f"'{attribute}' of '{place}' cannot be called", where=where)
    found: Callable[..., Any] = function
    return found


def _from_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise SeqtuneError(
            f"there is no file '{path}'",
            where=where,
            hint=f"paths are relative to the working directory, {Path.cwd()}",
        )
    title = f"seqtune_user_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(title, path)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[title] = module  # dataclasses and typing look modules up there
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # `import helper` finds helper.py beside the file, and nothing of ours is hidden by it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # importing a user's code may raise anything
        del sys.modules[title]
        relative = isinstance(error, ImportError) and "relative import" in str(error)
        hint = "a file is no package: `import helper` finds the helper.py beside it" if relative else ""
        raise SeqtuneError(_failed(str(path), error), where=where, hint=hint) from error
    return module


def _from_module(place: str, where: str, field: str) -> ModuleType:
    try:
        return import_module(place)
    except ModuleNotFoundError as error:
        raise SeqtuneError(
            _failed(place, error),
            where=where,
            hint=f"install the package, or name a file: {field}=path/to/file.py:function",
        ) from error
    except (Exception, SystemExit) as error:  # importing a user's code may raise anything
        raise SeqtuneError(_failed(place, error), where=where) from error


def _failed(place: str, error: BaseException) -> str:
    return f"importing '{place}' fails with {type(error).__name__}: {error}"
