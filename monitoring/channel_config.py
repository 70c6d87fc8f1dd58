"""The channels' configuration, read and checked: every setting has its type, and what is wrong is named."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from trellis.alerts import SEVERITIES, Channel
from trellis.errors import ConfigError, close_matches

LOG = Channel("log", "log", SEVERITIES)
_COMMON = {"kind", "severities", "models", "repeat_hours"}
# A secret's name ends in _env or _file in the configuration: the value itself never stands there.
_OPTIONS = {
    "log": set(),
    "webhook": {"url", "url_env", "url_file", "token_env", "token_file"},
    "slack": {"url_env", "url_file"},
    "email": {"host", "port", "from", "to", "tls", "user", "password_env", "password_file"},
    "alertmanager": {"url", "url_env", "url_file"},
}  # fmt: skip


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(_is_text(v) for v in value)


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


# What a setting has to be; every other one is a text.
_SHAPES: dict[str, tuple[Callable[[object], bool], str]] = {
    "severities": (_are_texts, 'a list such as ["critical"]'),
    "models": (_are_texts, 'a list of names such as ["flight_delay"]'),
    "repeat_hours": (lambda value: _is_number(value, 0, 8_760), "a number of hours from 0 to 8760"),
    "port": (lambda value: isinstance(value, int) and _is_number(value, 1, 65_535), "a number from 1 to 65535"),
    "to": (lambda value: _is_text(value) or (_are_texts(value) and bool(value)), "an address or a list of them"),
    "tls": (lambda value: isinstance(value, bool), "true or false"),
}


def read_channels(path: Path | None) -> tuple[list[Channel], list[ConfigError]]:
    """Read the channels' configuration, TOML with one table ``[channels.NAME]`` each; the log is always one.

    Returns:
        The channels that can be read, the log first; and what is wrong with the others, for one must not keep the rest
        untold.
    """
    if path is None:
        return [LOG], []
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [LOG], [ConfigError(f"The alert channels cannot be read: {error}.", where=path)]
    tables = told.get("channels", {})
    if set(told) - {"channels"} or not isinstance(tables, Mapping):
        remedy = "Write one table [channels.NAME] for each channel, and nothing else."
        return [LOG], [ConfigError("The alert channels are no tables of channels.", where=path, remedy=remedy)]
    found, wrong = [LOG], []
    for name, body in tables.items():
        try:
            found += [_channel(name, body, path)] if name != "log" else []
        except ConfigError as error:
            wrong.append(error)
    return found, wrong


def _channel(name: str, body: Any, path: Path) -> Channel:
    kinds = get_args(get_type_hints(Channel)["kind"])
    kind = body.get("kind") if isinstance(body, Mapping) else None
    if kind not in kinds:
        raise ConfigError(
            f"Channel {name!r} is of no known kind: {kind!r}.", where=path, remedy=f"Use {', '.join(kinds)}."
        )
    unknown = sorted(set(body) - _COMMON - _OPTIONS[kind])
    if unknown:
        hint = close_matches(unknown[0], _COMMON | _OPTIONS[kind])
        raise ConfigError(f"Channel {name!r} has no setting {unknown[0]!r}.", where=path, remedy=hint)
    for option, value in body.items():
        fits, shape = _SHAPES.get(option, (_is_text, "a text in quotes"))
        if not fits(value):
            raise ConfigError(f"The {option!r} of channel {name!r} is {value!r}.", where=path, remedy=f"Give {shape}.")
    wrong = [s for s in body.get("severities", ()) if s not in SEVERITIES]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is no severity.", where=path, remedy=f"Use {', '.join(SEVERITIES)}.")
    needed = {"email": ("host", "from", "to")}.get(kind, ())
    for option in needed:
        if option not in body:
            raise ConfigError(f"Channel {name!r} needs {option!r}.", where=path)
    if kind in ("webhook", "slack", "alertmanager") and not {"url", "url_env", "url_file"} & set(body):
        raise ConfigError(f"Channel {name!r} needs a url, url_env or url_file.", where=path)
    common: dict[str, Any] = {key: body[key] for key in ("repeat_hours",) if key in body}
    common |= {key: tuple(body[key]) for key in ("severities", "models") if key in body}
    return Channel(name, kind, **common, options={k: v for k, v in body.items() if k in _OPTIONS[kind]})
