"""The console: pages rendered on the server, read-only, without a script and without anything from elsewhere.

It runs in a process of its own, so that neither a page nor a slow store can delay a prediction; its handlers are plain
functions, which Starlette runs on threads.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from services.console.access import Access
from services.console.reading import Reading
from services.console.view import view_of
from services.prediction.auth import Guard
from trellis.decision import Decision, dumps
from trellis.errors import RegistryError, StorageError
from trellis.explain import intact, replay, same

logger = logging.getLogger(__name__)

PREFIX = "/ui"
_DECISION = TypeAdapter(Decision)
_HERE = Path(__file__).parent
_TONES = {
    "good": {"PROMOTE", "STABLE"},
    "warn": {"HOLD", "WAIT", "INCONCLUSIVE", "INSUFFICIENT", "DRIFT"},
    "bad": {"UPSTREAM_FAULT", "REJECT", "REFUSE", "ROLL_BACK"},
}


class Console:
    """The pages over one home and its stores.

    Args:
        reading: Where the state comes from.
        guard: Checks keys; one without a store lets everybody read.
        hosts: Names by which a browser may address it; None takes any. On loopback a list of its own keeps a foreign
            page from reading ours through a name that it lets point here (DNS rebinding).
    """

    def __init__(self, reading: Reading, guard: Guard, hosts: list[str] | None = None) -> None:
        self._reading = reading
        self._guard = guard
        self._hosts = hosts
        self._templates = _environment()
        self._style = (_HERE / "style.css").read_bytes()

    def app(self) -> Starlette:
        """Return the ASGI application."""
        style = f"{PREFIX}/style.css"
        middleware = [Middleware(Access, self._guard, self._error, frozenset({style, "/healthz"}))]
        if self._hosts is not None:
            middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=self._hosts, www_redirect=False))
        return Starlette(
            routes=[
                Route("/", lambda _: RedirectResponse(PREFIX)),
                Route("/healthz", lambda _: JSONResponse({"status": "ok"})),
                Route(style, lambda _: Response(self._style, media_type="text/css")),
                Route(PREFIX, self._models),
                Route(f"{PREFIX}/models/{{model}}", self._model),
                Route(f"{PREFIX}/decisions/{{decision}}", self._decision),
            ],
            middleware=middleware,
            exception_handlers={HTTPException: self._http_error, StorageError: self._store_away, Exception: self._bug},
        )

    def _models(self, _request: Request) -> Response:
        states = [self._reading.state(name) for name in self._reading.models()]
        return self._page(
            "models.html", views=[view_of(state) for state in states if state is not None], read_at=_now()
        )

    def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        state = self._reading.state(name)
        if state is None:
            raise HTTPException(404, f"No model {name[:100]!r} has a plan or was looked at.")
        view = view_of(state)
        return self._page("model.html", view=view, known={h.id for h in state.headlines})

    def _decision(self, request: Request) -> Response:
        name = request.path_params["decision"]
        decision = self._reading.decision(name)
        if decision is None:
            raise HTTPException(404, f"No decision has the id {name[:100]!r}.")
        agrees, whole, problem = _again(dumps(decision))
        policy = decision.inputs.get("policy") or {}
        return self._page(
            "decision.html", decision=decision, agrees=agrees, problem=problem, intact=whole, policy=policy
        )

    def _page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(template).render(values), status)

    def _error(self, status: int, text: str) -> HTMLResponse:
        titles = {401: "A key is needed", 403: "This key may not", 404: "Not here", 429: "Too often", 503: "Not now"}
        return self._page("error.html", status, title=titles.get(status, "An error"), text=text)

    def _http_error(self, _request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = self._error(error.status_code, error.detail)
        response.headers.update(error.headers or {})
        return response

    def _store_away(self, _request: Request, error: Exception) -> Response:
        logger.warning("%s", error)
        return self._error(503, "A store does not answer. Models are served from memory meanwhile; try again shortly.")

    def _bug(self, request: Request, error: Exception) -> Response:
        logger.error("unexpected error on %s", request.url.path, exc_info=error)
        return self._error(500, "The page met an error it does not know; it is in the console's log.")


@lru_cache(maxsize=256)
def _again(document: str) -> tuple[bool, bool, str]:
    """Take a decision again, once for the same content: a pure function's answer stays.

    Returns:
        Whether it agrees, whether its id is its content's digest, and why it cannot be taken again.
    """
    decision = _DECISION.validate_json(document)
    try:
        return same(replay(decision), decision.verdict), intact(decision), ""
    except RegistryError as error:
        return False, intact(decision), str(error)


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"moment": _moment, "pvalue": _pvalue, "brief": _brief, "clause": _first_clause}
    made.globals |= {"prefix": PREFIX, "tone": _tone}
    return made


def _tone(outcome: str) -> str:
    return next((tone for tone, outcomes in _TONES.items() if outcome in outcomes), "")


def _moment(text: str) -> str:
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%-d %b %Y %H:%M")
    except ValueError:
        return text


def _pvalue(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _brief(text: str) -> str:
    """Shorten the moments in a decision's subject to days."""
    return " to ".join(part[:10] if part[10:11] == "T" else part for part in text.split("/"))


def _first_clause(text: str) -> str:
    """Return a reason's first clause, enough to know which of several it is."""
    return text.split(";")[0].split(". ")[0].rstrip(".")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
