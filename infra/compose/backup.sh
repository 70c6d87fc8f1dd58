#!/bin/sh
# Saves a running stack: infra/compose/backup.sh DIRECTORY. Databases are dumped first, each in one snapshot, then files and
# objects are copied; DIRECTORY appears when everything is in it.
set -eu
[ $# = 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
parent=$(mkdir -p "$(dirname "$1")" && cd "$(dirname "$1")" && pwd) name=$(basename "$1")
work=$(mktemp -d "$parent/.$name.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 777 "$work"  # written by a container's user; what is above it keeps others out
dumps=
for database in trellis mlflow prefect; do
  docker compose exec -T postgres pg_dump --username postgres --format custom --no-owner --no-privileges "$database" \
    > "$work/$database.dump" || { echo "backup: $database could not be dumped, nothing was saved" >&2; exit 1; }
  dumps="$dumps --dump $database=/backup/$database.dump"
done
# shellcheck disable=SC2086
docker compose run --rm --no-deps -T --volume "$work:/backup" worker \
  trellis backup /backup/whole $dumps --objects artifacts=s3://trellis
docker compose run --rm --no-deps -T --user root --cap-add CHOWN --cap-add DAC_OVERRIDE --volume "$work:/backup" \
  worker chown -R "$(id -u):$(id -g)" /backup/whole
[ ! -e "$1" ] || { echo "backup: $1 exists already" >&2; exit 1; }
mv "$work/whole" "$1"
echo "backup: $1 is whole; check it at any time with: trellis restore --check $1"
