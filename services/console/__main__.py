"""Serve the console: ``python -m services.console [--port N]``; everything else is in the settings."""

from __future__ import annotations

import argparse
import logging
import sys

from trellis.errors import TrellisError
from trellis.settings import load_settings, silence_telemetry


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m services.console", description=__doc__)
    parser.add_argument("--port", type=int, default=None, help="Port; the default is TRELLIS_CONSOLE_PORT.")
    arguments = parser.parse_args()
    silence_telemetry()
    try:
        config = load_settings()
        logging.basicConfig(level=config.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(message)s")
        import uvicorn
        from prometheus_client import CollectorRegistry

        from services.console.app import PREFIX, Console
        from services.console.reading import Reading
        from services.prediction.auth import Guard
        from services.prediction.metrics import Metrics
        from trellis.adapters.api_keys import KeyStore

        reading = Reading(config.home.resolve(), config.database_url)
        keys = KeyStore(config.database_url) if config.needs_keys else None
        guard = Guard(keys, Metrics(CollectorRegistry()))
    except TrellisError as error:
        print(f"The console cannot start. {error}", file=sys.stderr)  # noqa: T201
        return 2
    hosts = ["localhost", "127.0.0.1", config.host] if keys is None and config.is_loopback else None
    app = Console(reading, guard, hosts).app()
    wanted = config.console_port if arguments.port is None else arguments.port
    served = uvicorn.Config(
        app, host=config.host, port=wanted, log_level="warning", server_header=False, timeout_graceful_shutdown=5
    )
    # Listening before it is told, so that the address is the true one, for port 0 too, and who comes at once waits.
    socket = served.bind_socket()
    socket.listen(served.backlog)
    port = socket.getsockname()[1]
    who = "Pages need a key with the scope read." if keys is not None else "No key is needed."
    print(f"Console on http://{config.host}:{port}{PREFIX}. {who}", flush=True)  # noqa: T201
    uvicorn.Server(served).run(sockets=[socket])
    return 0


if __name__ == "__main__":
    sys.exit(main())
