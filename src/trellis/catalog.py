"""The catalogue of plug-ins: folders and installed packages, listed without importing any of them.

A folder plug-in is ``FOLDER/NAME/__init__.py`` exporting ``plugin``. It is loaded by path as the package
``_trellis_models.NAME``: its relative imports work, and ``models`` never becomes a module that other code could import.
A package plug-in is an entry point of the group ``trellis.models`` whose name is the model's name.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from trellis.contract import ModelPlugin, ModelSpec
from trellis.errors import (
    BrokenPluginError,
    ContractError,
    DuplicateModelError,
    PluginError,
    TrellisError,
    UnknownModelError,
    close_matches,
)

ENTRY_POINT_GROUP = "trellis.models"
PRIVATE_PACKAGE = "_trellis_models"

# By plug-in: two threads that ask for one get the same, and one that hangs while it is imported holds up no other. What
# they import in common is the interpreter's to guard, which has a lock for every module.
_loading: dict[str, threading.RLock] = {}


@dataclass(frozen=True)
class Listing:
    """One line of a survey.

    Attributes:
        name: The name under which the plug-in is found.
        origin: Where it comes from; several origins joined by `` and `` where they collide.
        spec: Its declaration, or None where it cannot be had.
        problem: Why it cannot be used, one sentence with its cause, or None.
    """

    name: str
    origin: str
    spec: ModelSpec | None = None
    problem: str | None = None


@dataclass(frozen=True)
class _Source:
    """One place that offers a plug-in: what to call it, and how to fetch what it exports."""

    origin: str
    fetch: Callable[[], Any]


class Catalogue:
    """Finds plug-ins by name.

    The places are looked through once, at the first question, and no plug-in is imported for it; make a new catalogue
    to look again.

    Args:
        folders: Directories that hold one plug-in per sub-directory. One that does not exist holds none.
        entry_points: Whether installed packages count too.
    """

    def __init__(self, folders: Sequence[Path | str] = (), entry_points: bool = True) -> None:
        self.folders = tuple(Path(folder).resolve() for folder in folders)
        self.entry_points = entry_points

    def names(self) -> list[str]:
        """Return every name on offer, sorted; imports nothing."""
        return sorted(self._sources)

    def origin(self, name: str) -> str:
        """Return where a plug-in comes from; imports nothing.

        Raises:
            UnknownModelError: There is none of that name; close matches are named.
            DuplicateModelError: Two places offer it; both are named.
        """
        return self._source(name).origin

    def plugin(self, name: str) -> ModelPlugin:
        """Import and return a plug-in.

        Raises:
            UnknownModelError: There is none of that name; close matches are named.
            DuplicateModelError: Two places offer it; both are named.
            BrokenPluginError: Its code raises when imported; the cause is in the sentence and in ``__cause__``.
            ContractError: What it exports is no plug-in, or declares another name.
        """
        source = self._source(name)
        try:
            with _loading.setdefault(name, threading.RLock()):
                exported = source.fetch()
        except TrellisError as error:
            if isinstance(error, BrokenPluginError):
                raise
            raise _broken(name, source.origin, error) from error
        except (Exception, SystemExit) as error:  # a plug-in may do anything, also leave
            raise _broken(name, source.origin, error) from error
        return _checked(name, source.origin, exported)

    def survey(self) -> list[Listing]:
        """Return one line per name, importing each plug-in; a broken one stays listed with its cause."""
        lines = []
        for name in self.names():
            origin = " and ".join(source.origin for source in self._sources[name])
            try:
                lines.append(Listing(name, origin, spec=self.plugin(name).spec))
            except PluginError as error:
                lines.append(Listing(name, origin, problem=error.what))
        return lines

    def _source(self, name: str) -> _Source:
        sources = self._sources.get(name)
        if sources is None:
            looked = [str(f) + ("" if f.is_dir() else " (not there)") for f in self.folders]
            looked += ["installed packages"] if self.entry_points else []
            hint = close_matches(name, self._sources)
            raise UnknownModelError(f"No model is called {name!r}.", where=", ".join(looked), remedy=hint)
        if len(sources) > 1:
            origins = " and ".join(source.origin for source in sources)
            raise DuplicateModelError(
                f"The model {name!r} comes from {len(sources)} places: {origins}.",
                where=origins,
                remedy="Rename or remove all but one.",
            )
        return sources[0]

    @cached_property
    def _sources(self) -> dict[str, list[_Source]]:
        found: dict[str, list[_Source]] = {}
        for folder in dict.fromkeys(self.folders):  # the same folder given twice is one place
            for init in sorted(folder.glob("*/__init__.py")):
                if not init.parent.name.startswith(("_", ".")):
                    found.setdefault(init.parent.name, []).append(_folder_source(init.parent))
        if self.entry_points:
            for point in entry_points(group=ENTRY_POINT_GROUP):
                found.setdefault(point.name, []).append(_package_source(point))
        return found


def _folder_source(folder: Path) -> _Source:
    return _Source(str(folder), lambda: _load_folder(folder).plugin)


def _package_source(point: EntryPoint) -> _Source:
    package = f"package {point.dist.name} {point.dist.version}" if point.dist else "package"
    return _Source(f"{package} ({point.value})", point.load)


def _load_folder(folder: Path) -> ModuleType:
    """Import a folder as a package under a private name; leave nothing half imported behind."""
    name = f"{PRIVATE_PACKAGE}.{folder.name}"
    init = folder / "__init__.py"
    taken = sys.modules.get(name)
    if taken is not None and Path(str(taken.__file__)) != init:
        # Another folder's plug-in of this name is in use in this process. Its late relative imports must keep finding
        # their own package, so this one gets a name of its own.
        name = f"{PRIVATE_PACKAGE}.{folder.name}__{crc32(str(folder).encode()):x}"
        taken = sys.modules.get(name)
    if taken is not None:
        return taken
    parent = ModuleType(PRIVATE_PACKAGE, "Folder plug-ins, loaded by path.")
    parent.__path__ = []  # a package without a directory: nothing is found in it but what is put there
    sys.modules.setdefault(PRIVATE_PACKAGE, parent)  # at once: other threads may be here for other plug-ins
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "plugin"):
            raise ContractError("its __init__.py exports no 'plugin'.")
    except BaseException:
        for loaded in [n for n in list(sys.modules) if n == name or n.startswith(name + ".")]:
            del sys.modules[loaded]
        raise
    return module


def _broken(name: str, origin: str, error: BaseException) -> BrokenPluginError:
    remedy = "Mend the plug-in."
    if isinstance(error, ModuleNotFoundError) and error.name:
        remedy = f"Install what provides {error.name!r}, or mend the import."
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    last = frames[-1] if frames else None
    line = f" ({Path(last.filename).name} line {last.lineno})" if last and last.filename != __file__ else ""
    what = error.what if isinstance(error, TrellisError) else f"{type(error).__name__}: {error}"
    return BrokenPluginError(f"The plug-in {name!r} cannot be loaded{line}: {what}", where=origin, remedy=remedy)


def _checked(name: str, origin: str, exported: object) -> ModelPlugin:
    def refuse(problem: str, remedy: str) -> ContractError:
        return ContractError(f"The plug-in {name!r} {problem}.", where=origin, remedy=remedy)

    if isinstance(exported, type) and issubclass(exported, ModelPlugin):
        raise refuse(f"exports the class {exported.__name__}", f"Export an instance: plugin = {exported.__name__}().")
    if not isinstance(exported, ModelPlugin):
        raise refuse(f"exports a {type(exported).__name__}", "Export an instance of a trellis.contract.ModelPlugin.")
    spec = getattr(exported, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise refuse("has no ModelSpec as its 'spec'", "Declare one on the class.")
    if spec.name != name:
        raise refuse(f"declares the name {spec.name!r}", "Give folder or entry point and ModelSpec the same name.")
    return exported
