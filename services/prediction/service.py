"""The BentoML service: BentoML runs the workers, the routes are an ASGI application mounted in it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from typing import TYPE_CHECKING

import bentoml

from services.prediction.app import PredictionService
from trellis.adapters.plan_store import PlanStore
from trellis.catalog import Catalogue
from trellis.settings import Settings, settings

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from services.prediction.features import OnlineFeatures
    from trellis.contract import Batch

logger = logging.getLogger(__name__)


class _Features:
    """The feature store, opened at its first use: a service of models without features never imports Feast."""

    def __init__(self, config: Settings) -> None:
        self._config = config
        self._store: OnlineFeatures | None = None
        self._lock = threading.Lock()

    def online(self, service: str, keys: Batch, request: Batch) -> tuple[Batch, Batch]:
        """Read features; see ``OnlineFeatures``."""
        return self._opened().online(service, keys, request)

    def stale(self, service: str, times: Batch, request: Batch) -> Batch:
        """Tell what was too old; see ``OnlineFeatures``."""
        return self._opened().stale(service, times, request)

    def derived(self, service: str, request: Batch) -> Batch:
        """Compute what needs no store; see ``OnlineFeatures``."""
        return self._opened().derived(service, request)

    def _opened(self) -> OnlineFeatures:
        with self._lock:
            if self._store is None:
                from trellis.adapters.feature_store import FeatureStore

                self._store = FeatureStore(self._config.feature_repo.resolve(), self._config.home.resolve())
            return self._store


class _Mounted:
    """An ASGI application that is made when the worker starts, and answers every path that BentoML does not."""

    def __init__(self) -> None:
        self.app: Starlette | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None, "the worker has not started"
        # Below a mount the whole path is ours.
        await self.app({**scope, "root_path": ""}, receive, send)


_mounted = _Mounted()


def _log_to_stderr(level: str) -> None:
    """Let our own rooms speak; BentoML has set the root logger up for itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("services", "trellis"):
        log = logging.getLogger(name)
        log.setLevel(level)
        log.addHandler(handler)
        log.propagate = False


def open_service(config: Settings) -> PredictionService:
    """Build the service of this process from the settings."""
    plans = PlanStore(config.database_url)
    return PredictionService(config.home.resolve(), config, plans, Catalogue([config.models]), _Features(config))


@bentoml.asgi_app(_mounted, path="/")
@bentoml.service(name="trellis")
class Prediction:
    """Serves every model that has a rollout plan."""

    def __init__(self) -> None:
        config = settings()
        _log_to_stderr(config.log_level.upper())
        self._service = open_service(config)
        _mounted.app = self._service.app()

    @bentoml.on_startup
    async def follow(self) -> None:
        """Begin to load; the port opens at once and readiness tells when it is done."""
        self._service.start()
        self._freezing = asyncio.get_running_loop().create_task(self._freeze())

    @bentoml.on_shutdown
    async def flush(self) -> None:
        """Write what is still to be logged."""
        self._freezing.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._service.stop)
        logger.info("every answered prediction is on the disk")

    async def __is_ready__(self) -> bool:
        return self._service.ready

    async def _freeze(self) -> None:
        """Take what loading left out of the collector's sight: a full pass over it stops answers for 0.3 s."""
        while not self._service.ready:
            await asyncio.sleep(0.05)
        gc.collect()
        gc.freeze()


__all__ = ["Prediction", "open_service"]
