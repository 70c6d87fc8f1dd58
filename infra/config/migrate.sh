#!/bin/sh
# Brings one schema up to date: that of trellis (with the bucket and the first API key), mlflow or prefect. Doing it again
# changes nothing; what depends on a schema that could not be brought up to date does not start.
set -eu
case $1 in
  trellis) set -- "$1" trellis setup --objects "$OBJECTS" --key-file /run/secrets/api_key ;;
  mlflow) set -- "$1" mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI" ;;
  prefect) set -- "$1" prefect server database upgrade --yes ;;
esac
what=$1; shift
if ! "$@" > /tmp/migration.log 2>&1; then
  tail -25 /tmp/migration.log >&2
  echo "migrate: the schema of $what could not be brought up to date, so nothing that needs it is started. Mend what the" \
    "log above says (its database is named in the secrets, its version in the image) and run: make up" >&2
  exit 1
fi
echo "migrate: the schema of $what is up to date"
