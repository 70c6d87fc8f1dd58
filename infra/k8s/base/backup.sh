#!/bin/sh
# One backup of a platform on a cluster, in three steps, each in the image that can do it; /backup is theirs alone.
#   addresses  where the databases are, as PostgreSQL's programs read it: a password in an argument is everybody's
#   dump       each database in one snapshot
#   save       files and objects beside the dumps, to BACKUPS, the manifest last
set -eu
databases="trellis mlflow prefect"
case $1 in
  addresses)
    umask 027
    python - $databases > /backup/services <<'END'
import sys
from sqlalchemy.engine import make_url
files = {"trellis": "store_url", "mlflow": "mlflow_backend", "prefect": "prefect_backend"}
for name in sys.argv[1:]:
    url = make_url(open(f"/run/secrets/{files[name]}").read().strip())
    keys = {"host": url.host, "port": url.port, "dbname": url.database, "user": url.username, "password": url.password}
    keys |= {key: url.query[key] for key in ("sslmode", "sslrootcert") if key in url.query}
    print(f"[{name}]", *(f"{key}={value}" for key, value in keys.items() if value is not None), sep="\n")
END
    ;;
  dump)
    umask 027
    for name in $databases; do
      PGSERVICEFILE=/backup/services PGCONNECT_TIMEOUT=10 pg_dump --no-password --format=custom --no-owner --no-privileges \
        --dbname "service=$name" --file "/backup/$name.dump"
      echo "backup: $name is dumped"
    done
    rm /backup/services
    ;;
  save)
    for name in $databases; do set -- "$@" --dump "$name=/backup/$name.dump"; done
    shift
    unset TRELLIS_ONLINE_STORE_FILE  # of Redis nothing is kept, and its password is not here
    trellis backup "/backup/$(date -u +%Y-%m-%dT%H-%M-%SZ)" "$@" --objects "artifacts=$OBJECTS" --send "$BACKUPS"
    ;;
esac
