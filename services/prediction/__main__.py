"""Run the prediction service: ``python -m services.prediction [--workers N]``; everything else is in the settings."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trellis.errors import ConfigError, TrellisError
from trellis.settings import PREFIX, Settings, load_settings, silence_telemetry

_ROOT = Path(__file__).resolve().parents[2]
_ASK_AGAIN_SECONDS = 1.0
_LOOK_SECONDS = 0.5  # between two looks for dead workers
_SHORT = 80


def address(config: Settings) -> tuple[str, int]:
    """Return the IP address and port to listen on, once they are known to be free; port 0 takes any.

    Raises:
        ConfigError: There is no such address here, or something else listens on it.
    """
    remedy = "Stop what listens there, or set TRELLIS_HOST and TRELLIS_PORT."
    try:
        family, _, _, _, place = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            return str(place[0]), int(probe.getsockname()[1])
    except OSError as error:
        where = f"{config.host}:{config.port}"
        raise ConfigError(f"Cannot listen: {error.strerror or error}.", where=where, remedy=remedy) from error


def environment(config: Settings, workers: int, scratch: str) -> dict[str, str]:
    """Return what BentoML has to find in the environment before it is imported.

    Its access log and own metrics are off, because the service counts for itself. What it writes, the files in which
    workers share their metrics above all, goes to ``scratch``: services that share a home must not share them.
    """
    options = {
        "api_server.logging.access.enabled": "false",
        "api_server.metrics.enabled": "false",
        "tracing.excluded_urls": ".*",
        "services.trellis.workers": str(workers),
    }
    return {
        "PREDICTION_PARENT": str(os.getpid()),  # with which the workers end, see service.py
        "PREDICTION_WORKERS": str(workers),  # who share the listening socket and a key's limit, see loops.py
        "BENTOML_HOME": f"{scratch}/bentoml",
        "TMPDIR": scratch,
        "BENTOML_CONFIG_OPTIONS": " ".join(f"{key}={value}" for key, value in options.items()),
        "BENTOML_QUIET": "true",
        # Workers run in the repository's root, wherever this was started.
        PREFIX + "HOME": str(config.home.resolve()),
        PREFIX + "MODELS": str(config.models.resolve()),
        PREFIX + "FEATURE_REPO": str(config.feature_repo.resolve()),
    }


def insist_on_quitting() -> None:
    """Let Circus, which BentoML runs the workers with, be asked to quit every second until it does.

    It refuses whatever comes while a dead worker is being replaced, a signal too, and then would never end.
    """
    from circus.sighandler import SysHandler

    ask_once = SysHandler.quit

    def insist(handler: Any) -> None:
        ask_once(handler)
        loop = handler.controller.loop
        loop.add_callback_from_signal(loop.call_later, _ASK_AGAIN_SECONDS, insist, handler)

    SysHandler.quit = insist


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m services.prediction", description=__doc__)
    parser.add_argument("--workers", type=int, default=1, help="Processes that answer (default 1).")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error("--workers needs a number from 1")
    silence_telemetry()
    try:
        config = load_settings()
        host, port = address(config)
        config.directory("predictions")  # where every answer is logged: a home that cannot be written is told now
    except (TrellisError, OSError) as error:
        print(f"The prediction service cannot start. {error}", file=sys.stderr)  # noqa: T201
        return 2
    who = "Requests need a key (trellis keys create)." if config.needs_keys else "No key is needed."
    print(f"Prediction service on http://{host}:{port}, described at /docs. {who}", flush=True)  # noqa: T201
    with _scratch() as scratch:
        os.environ.update(environment(config, arguments.workers, scratch))
        from _bentoml_impl.server import serve_http

        insist_on_quitting()
        with _own_arbiter(scratch):
            server = serve_http(
                "services.prediction.service:Prediction",
                working_dir=str(_ROOT),
                host=host,
                port=port,
                timeout_graceful_shutdown=10,
            )
            server.arbiter.exit_stack.close()  # removes BentoML's temporary directory
    return 0


@contextmanager
def _scratch() -> Iterator[str]:
    """Give a directory for whatever is temporary, which goes when the service ends, whoever of its workers was killed.

    It is ours alone, and so are the sockets in it, whose paths have about a hundred characters at most.
    """
    place = None if len(tempfile.gettempdir()) < _SHORT else "/tmp"  # noqa: S108 (mkdtemp makes it ours alone)
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="trellis-", dir=place) as directory:
        tempfile.tempdir = directory
        try:
            yield directory
        finally:
            tempfile.tempdir = before


@contextmanager
def _own_arbiter(directory: str) -> Iterator[None]:
    """Keep the control channel of BentoML's process manager to this user, and have it replace a dead worker at once.

    Circus listens on a TCP port of loopback, where whoever has an account may add a process to be run as us. It takes
    a Unix socket as well. It looks for dead workers every so often, which BentoML sets to ten seconds for the sake of
    its runners, of which we have none. BentoML has no option for either, so the class that it makes is replaced by one
    that is given ours.
    """
    from bentoml._internal.utils import circus

    stock = circus.Arbiter

    class OwnArbiter(stock):  # type: ignore[misc, valid-type]
        def __init__(self, watchers: Any, endpoint: str, pubsub_endpoint: str, **options: Any) -> None:
            del endpoint, pubsub_endpoint
            options["check_delay"] = _LOOK_SECONDS
            super().__init__(watchers, f"ipc://{directory}/control", f"ipc://{directory}/events", **options)

    circus.Arbiter = OwnArbiter
    try:
        yield
    finally:
        circus.Arbiter = stock


if __name__ == "__main__":
    sys.exit(main())
