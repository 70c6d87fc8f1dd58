#!/bin/sh
# Brings a backup back into a stack whose volumes are empty: make down VOLUMES=1, then infra/compose/restore.sh DIRECTORY,
# then make up. Every byte is checked first; a database, bucket or home that is not empty is refused.
set -eu
[ $# = 1 ] && [ -f "$1/manifest.json" ] || { echo "usage: $0 DIRECTORY, of a finished backup" >&2; exit 2; }
from=$(cd "$1" && pwd)
view=$(mktemp -d)  # a directory that the container's user may read, whoever owns the backup
trap 'rm -rf "$view"' EXIT
cp -r "$from" "$view/backup" && chmod -R a+rX "$view"
run() { docker compose run --rm --no-deps -T --volume "$view:/view:ro" "$@"; }
run worker trellis restore /view/backup --check
docker compose up --detach --wait postgres redis object-store
docker compose run --rm databases
for dump in "$from"/databases/*.dump; do
  database=$(basename "$dump" .dump)
  tables=$(docker compose exec -T postgres psql --username postgres --dbname "$database" -XAtc \
    "select count(*) from pg_tables where schemaname = 'public'")
  [ "$tables" = 0 ] || { echo "restore: the database $database is not empty; see: make down VOLUMES=1" >&2; exit 1; }
done
for dump in "$from"/databases/*.dump; do
  database=$(basename "$dump" .dump)
  docker compose exec -T postgres pg_restore --username postgres --role "$database" --single-transaction --exit-on-error \
    --no-owner --no-privileges --dbname "$database" < "$dump"
  echo "restore: the database $database is back"
done
run worker trellis restore /view/backup --databases-restored --objects artifacts=s3://trellis
echo "restore: done. Start the rest with: make up"
