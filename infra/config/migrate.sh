#!/bin/sh
# Brings every schema up to date, then makes the bucket and the first API key. Run before anything else of the stack;
# running it again changes nothing. It stops at the first thing that fails and says which.
set -eu
step() {
  what=$1; shift
  if ! "$@" > /tmp/step.log 2>&1; then
    tail -25 /tmp/step.log >&2
    echo "migrate: $what failed, and nothing after it was done. What the log above says must be mended first; what was" \
      "there before is untouched (PostgreSQL keeps a failed migration out). Then run: make up" >&2
    exit 1
  fi
  echo "migrate: $what: done"
}
step "Trellis's tables, bucket and key" trellis setup --objects "$OBJECTS" --key-file /run/secrets/api_key
step "MLflow's schema" mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
step "Prefect's schema" prefect server database upgrade --yes
