"""The BentoML service: BentoML packages, configures and runs the workers; requests for our routes go straight to them.

BentoML wraps whatever a service answers, mounted applications as well, in a tracing span, a task of its own and a
timer that outlives the request by a minute, also where tracing and timeouts are switched off. That costs several times
what scoring a row does, and 5 kB of memory until the timer ends, which whoever asks ``/livez`` often enough can fill a
machine with. ``bentoml.service`` takes a ``service_class``, and a worker serves whatever its ``to_asgi`` returns: ours
hands every request to our own application; the start and end of the worker stay BentoML's. Deadlines and limits are
kept in ``app``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import bentoml

from services.prediction import loops
from services.prediction.app import PredictionService
from services.prediction.metrics import Metrics
from services.prediction.shadows import Shadows
from services.prediction.starts import Starts, rest
from trellis.adapters.api_keys import KeyStore
from trellis.adapters.plan_store import PlanStore
from trellis.catalog import Catalogue
from trellis.settings import Settings, settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from services.prediction.features import OnlineFeatures
    from services.prediction.one_row import RowReader
    from trellis.adapters.feature_store import FeatureStore
    from trellis.contract import Batch
    from trellis.freshness import Sla

logger = logging.getLogger(__name__)
loops.use()

# Set by whoever starts the workers; no setting, so it has not the settings' prefix.
PARENT = "PREDICTION_PARENT"
_LOOK_SECONDS = 20.0
# Whoever starts the workers has set the directory for what is temporary, see __main__.py.
_starts = Starts(Path(tempfile.gettempdir())) if PARENT in os.environ else None


class _Features:
    """The feature store, opened at its first use: a service of models without features never imports Feast."""

    def __init__(self, config: Settings) -> None:
        self._config = config
        self._store: FeatureStore | None = None
        self._lock = threading.Lock()

    def online(self, service: str, keys: Batch, request: Batch) -> tuple[Batch, Batch]:
        """Read features; see ``OnlineFeatures``."""
        return self._opened().online(service, keys, request)

    def stale(self, service: str, times: Batch, request: Batch) -> Batch:
        """Tell what was too old; see ``OnlineFeatures``."""
        return self._opened().stale(service, times, request)

    def slas(self, service: str) -> Sequence[Sla]:
        """Return the views' freshness promises; see ``OnlineFeatures``."""
        return self._opened().slas(service)

    def row_reader(self, service: str) -> RowReader | None:
        """Return what reads row by row; see ``RowFeatures``."""
        return self._opened().row_reader(service)

    def derived(self, service: str, request: Batch) -> Batch:
        """Compute what needs no store; see ``OnlineFeatures``."""
        return self._opened().derived(service, request)

    def close(self) -> None:
        """Close the connections of the store, if it was opened; on the event loop."""
        if self._store is not None:
            self._store.close()

    def _opened(self) -> OnlineFeatures:
        with self._lock:
            if self._store is None:
                from trellis.adapters.feature_store import FeatureStore

                config = self._config
                self._store = FeatureStore(config.feature_repo.resolve(), config.home.resolve(), config.online_store)
            return self._store


class _Ours:
    """Our application, made when the worker starts and before any request comes."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None


_ours = _Ours()


class Front:
    """Hands requests to us and the worker's start and end to BentoML."""

    def __init__(self, bentoml_app: ASGIApp) -> None:
        self._bentoml = bentoml_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = _ours.app if scope["type"] == "http" else None
        await (app or self._bentoml)(scope, receive, send)


class _Service(bentoml.Service):  # type: ignore[type-arg]
    """A BentoML service whose requests meet our application first."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Return what a worker serves; its first call that is ours, and before it listens to signals."""
        if _starts is not None:
            died, seconds = _starts.begin()
            if died:
                told = f"{died} workers before this one died before they served; it waits {seconds:g} s"
                print(told, file=sys.stderr, flush=True)  # noqa: T201 - nobody logs yet
                rest(seconds, _parent())
        return Front(super().to_asgi(is_main))


def _log_to_stderr(level: str) -> None:
    """Let our own rooms speak; BentoML has set the root logger up for itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("services", "trellis"):
        log = logging.getLogger(name)
        log.setLevel(level)
        log.addHandler(handler)
        log.propagate = False
    # BentoML has no use for the server's access log either; heard by nobody, it is not even put together.
    logging.getLogger("uvicorn.access").propagate = False


def open_service(config: Settings, features: _Features | None = None) -> PredictionService:
    """Build the service of this process from the settings."""
    plans = PlanStore(config.database_url)
    home, metrics = config.home.resolve(), Metrics()
    shadows = Shadows(home, config.models.resolve(), metrics, verify_key=config.verify_key)
    keys = KeyStore(config.database_url) if config.needs_keys else None
    features, plugins = features or _Features(config), Catalogue([config.models])
    return PredictionService(home, config, plans, plugins, features, metrics, shadows, keys, loops.workers())


def _parent() -> int:
    """Return the process that this worker belongs to; it may be gone before the worker has come this far."""
    return int(os.environ.get(PARENT, os.getppid()))


async def _end_with(parent: int) -> None:
    """End this worker in good order when the process that started it is gone.

    A killed parent cannot tell its workers; they would hold the port, and a restarted service could not have it.
    """
    while os.getppid() == parent:
        await asyncio.sleep(1)
    logger.warning("the process that started this worker is gone; the worker ends too")
    os.kill(os.getpid(), signal.SIGTERM)


@bentoml.service(name="trellis", service_class=_Service)
class Prediction:
    """Serves every model that has a rollout plan."""

    def __init__(self) -> None:
        config = settings()
        _log_to_stderr(config.log_level.upper())
        self._features = _Features(config)
        self._service = open_service(config, self._features)
        _ours.app = self._service.app()

    @bentoml.on_startup
    async def follow(self) -> None:
        """Begin to load, and take requests once what there is has been looked at.

        A worker that is started in the place of a dead one is handed connections at once; without its models it would
        refuse callers whom the other workers serve. A plan store that does not answer, or refuses, holds it up no
        longer than the limit; then readiness tells when it is done.
        """
        self._service.start()
        self._service.workers.pulse.start()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._service.looked, _LOOK_SECONDS)
        if _starts is not None:
            _starts.serves()
        self._tasks = [loop.create_task(self._freeze()), loop.create_task(_end_with(_parent()))]

    @bentoml.on_shutdown
    async def flush(self) -> None:
        """Write what is still to be logged."""
        for task in self._tasks:
            task.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._service.stop)
        self._features.close()
        logger.info("every answered prediction is on the disk")

    async def _freeze(self) -> None:
        """Take what loading left out of the collector's sight: a full pass over it stops answers for 0.3 s."""
        while not self._service.ready:
            await asyncio.sleep(0.05)
        gc.collect()
        gc.freeze()


__all__ = ["Prediction", "open_service"]
