"""Make the secrets of a development stack, once: ``python infra/compose/make_secrets.py``; what is there stays.

Every secret is a file of its own in ``infra/compose/secrets``, which is not committed. The directory lets nobody but
its owner in; the files are readable, because each container runs as a user of its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from secrets import token_hex, token_urlsafe

PLACE = Path(__file__).parent / "secrets"
# Who is known by a password that others need as well, in their own form.
PASSWORDS = ("postgres_password", "trellis_db_password", "mlflow_db_password", "prefect_db_password", "redis_password")
OBJECT_STORE_USER = "trellis"


def passwords() -> dict[str, str]:
    """Return a random value per secret that depends on no other."""
    made = {name: token_hex(24) for name in (*PASSWORDS, "object_store_password", "grafana_admin_password")}
    return made | {
        "api_key": f"trellis_{token_hex(6)}_{token_urlsafe(32)}",
        "alert_webhook_url": "http://monitor:9108/alerts",
    }


def derived(of: dict[str, str]) -> dict[str, str]:
    """Return the secrets that hold others: addresses with passwords in them, and files in a vendor's form."""
    key = {"accessKey": OBJECT_STORE_USER, "secretKey": of["object_store_password"]}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    identity = {"name": OBJECT_STORE_USER, "credentials": [key], "actions": actions}
    # The second user may do nothing but tell the health check that the server answers.
    users = [f"user default on >{of['redis_password']} ~* &* +@all", "user health on nopass resetkeys -@all +ping"]
    return {
        "store_url": f"postgresql+psycopg://trellis:{of['trellis_db_password']}@postgres:5432/trellis",
        "mlflow_backend": f"postgresql+psycopg://mlflow:{of['mlflow_db_password']}@postgres:5432/mlflow",
        "prefect_backend": f"postgresql+asyncpg://prefect:{of['prefect_db_password']}@postgres:5432/prefect",
        "online_store": f"redis://:{of['redis_password']}@redis:6379/0",
        "redis_users": "\n".join(users),
        "object_store_identities": json.dumps({"identities": [identity]}),
        "object_store_credentials": (
            f"[default]\naws_access_key_id = {OBJECT_STORE_USER}\naws_secret_access_key = {of['object_store_password']}"
        ),
    }


def main() -> int:
    """Write what is missing and say so."""
    PLACE.mkdir(mode=0o700, exist_ok=True)
    made = []

    def keep(name: str, value: str) -> str:
        path = PLACE / name
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(descriptor, "w") as file:
                file.write(value + "\n")
            made.append(name)
        return path.read_text().strip()

    known = {name: keep(name, value) for name, value in passwords().items()}
    empty = [name for name, value in known.items() if not value]
    if empty:
        print(f"The secret {empty[0]} is empty: {PLACE / empty[0]}. Write it, or delete the file to get a new one.")
        return 1
    for name, value in derived(known).items():
        path = PLACE / name
        if path.exists() and path.read_text().strip() != value:
            print(f"The secret {name} does not fit the passwords beside it, which were changed: {path}.")
            print("Delete it and make the secrets again, or put the passwords back.")
            return 1
        keep(name, value)
    print(f"Secrets: {len(made)} made in {PLACE}." if made else f"Secrets: all there, in {PLACE}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
