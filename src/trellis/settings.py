"""One frozen ``Settings``, read from ``TRELLIS_*`` variables; what differs between places is only here."""

from __future__ import annotations

import os
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from trellis.errors import ConfigError, StorageError, close_matches

PREFIX = "TRELLIS_"
FILE = "_FILE"

# Set before a vendor is imported, by every entry point: nothing phones home.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Settings(BaseSettings):
    """Everything that may differ between a laptop, compose and a cluster."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(Path("var"), description="Directory of everything Trellis writes.")
    models: Path = Field(Path("models"), description="Directory of plug-in folders.")
    feature_repo: Path = Field(Path("feature_repo"), description="Directory of the Feast definitions.")
    host: str = Field("127.0.0.1", description="Address the services listen on; loopback unless asked.")
    port: int = Field(3000, ge=0, le=65535, description="Port of the prediction service.")
    console_port: int = Field(3001, ge=0, le=65535, description="Port of the console's pages, /ui.")
    mlflow_uri: str | None = Field(None, description="MLflow store; SQLite in the home if unset.")
    store_url: str | None = Field(None, description="SQLAlchemy URL of plans and decisions; SQLite if unset.")
    alerts: Path | None = Field(None, description="Alert channels, a TOML file; the log alone if unset.")
    online_store: str = Field(
        "sqlite",
        pattern=r"^(sqlite|rediss?://.+)$",
        description="Online features: sqlite, a file in the home, or a Redis as redis://host:port/0.",
    )
    orchestrator: Literal["embedded", "prefect"] = Field(
        "embedded", description="Whether flows run in this process or through a Prefect server (PREFECT_API_URL)."
    )
    work_pool: str | None = Field(
        None, description="Prefect work pool that runs the deployments; the process that offers them, if unset."
    )
    loop_minutes: float = Field(
        60.0, ge=0, le=43_200, description="How often a deployed model's loop takes a turn, in minutes; 0 for never."
    )
    auth: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether requests need an API key; auto asks for one wherever HOST is not loopback."
    )
    signing_key: Path | None = Field(
        None, description="PEM file of the private key that signs artifacts when they are registered; unset: unsigned."
    )
    signing_password: SecretStr | None = Field(None, description="Password of that key, if it is encrypted.")
    verify_key: Path | None = Field(
        None, description="PEM file of the public key that every artifact must be signed for; unset: not asked for."
    )
    unit_secret: SecretStr | None = Field(
        None, description="Secret with which units (caller ids) are hashed in logs; a file in the home if unset."
    )
    plan_poll_seconds: float = Field(0.5, gt=0, le=60, description="How often a serving process looks for a new plan.")
    flush_seconds: float = Field(
        0.05,
        ge=0,
        le=10,
        description="Within it an answered prediction is written and outlives its process; then it is synced and "
        "outlives the machine. 0 writes and syncs before it answers.",
    )
    max_rows: int = Field(1_000, ge=1, le=100_000, description="Most rows of one request.")
    max_body_bytes: int = Field(2_000_000, ge=1_000, description="Largest request body, in bytes.")
    request_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Longest time to answer a request, in seconds; X-Timeout-Ms can only shorten it.",
    )
    max_waiting: int = Field(256, ge=1, le=100_000, description="Most requests that may wait for an answer.")
    cache_seconds: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="How long an answer is given again for the same inputs and version; 0 for never.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe message logged.")

    @property
    def tracking_uri(self) -> str:
        """MLflow's store, resolved."""
        return self.mlflow_uri or f"sqlite:///{self.directory('mlflow')}/mlflow.db"

    @property
    def database_url(self) -> str:
        """The plan and decision store, resolved."""
        return self.store_url or f"sqlite:///{self.directory('store')}/trellis.db"

    @property
    def needs_keys(self) -> bool:
        """Whether the prediction service asks for API keys."""
        return self.auth == "on" or (self.auth == "auto" and not self.is_loopback)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches what listens."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def directory(self, *parts: str) -> Path:
        """Return an absolute directory below the home, made if it is not there.

        Raises:
            StorageError: It cannot be made.
        """
        path = self.home.resolve().joinpath(*parts)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The home cannot be written: {error.strerror or error}.",
                where=path,
                remedy="Free the volume of TRELLIS_HOME, or let this user write it.",
            ) from error
        return path


def load_settings() -> Settings:
    """Read the settings from the environment.

    A value may be in a file, as secrets are: ``TRELLIS_STORE_URL_FILE`` names the file of ``TRELLIS_STORE_URL``.

    Raises:
        ConfigError: A value is out of range, a ``TRELLIS_*`` variable is not a setting, or a file cannot be read.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name.removesuffix(FILE) not in known)
    if unknown:
        hint = close_matches(unknown[0], known)
        raise ConfigError(f"{unknown[0]} is not a setting.", where="environment", remedy=f"{hint} See .env.example.")
    try:
        return Settings(**_from_files(known))
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigError(f"{name}: {first['msg']}.", where="environment", remedy="See .env.example.") from error


def _from_files(known: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in sorted(known & {name.removesuffix(FILE) for name in os.environ if name.endswith(FILE)}):
        if name in os.environ:
            raise ConfigError(f"{name} and {name}{FILE} are both set.", where="environment", remedy="Keep one of them.")
        path = Path(os.environ[name + FILE])
        try:
            text = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            remedy = "Make the file, or let this user read it."
            raise ConfigError(f"{name}{FILE} cannot be read: {why}.", where=path, remedy=remedy) from error
        if not text:
            raise ConfigError(f"The file of {name}{FILE} is empty.", where=path, remedy="Write the value into it.")
        found[name.removeprefix(PREFIX).lower()] = text
    return found


@cache
def settings() -> Settings:
    """Return the settings of this process, read once."""
    return load_settings()


def silence_telemetry() -> None:
    """Turn every library's telemetry off, unless the user has set it."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
