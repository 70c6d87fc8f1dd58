#!/bin/sh
# Makes one role and one database for each of the names given, or brings their passwords up to date. The password of NAME
# is the file /run/secrets/NAME_db_password, the superuser's /run/secrets/postgres_password; PGHOST says where.
set -eu
fail() { echo "databases: $1" >&2; exit 1; }
secret() { [ -s "/run/secrets/$1" ] || fail "the secret $1 is missing or empty. Make it with: make secrets"; cat "/run/secrets/$1"; }

PGPASSWORD=$(secret postgres_password)
export PGUSER="${PGUSER:-postgres}" PGPASSWORD PGCONNECT_TIMEOUT=5
# A server that is not there yet refuses nobody; a cluster starts this beside it, and tries it again ever more rarely.
left=${DATABASES_WAIT:-120}
until pg_isready -q -d postgres; do
  [ "$left" -gt 0 ] || fail "PostgreSQL at $PGHOST does not answer. It may still be starting: look at its log."
  left=$((left - 1)); sleep 1
done
psql -XAtqc 'SELECT 1' -d postgres > /dev/null || fail "PostgreSQL at $PGHOST refuses the superuser. If postgres_password \
was changed after the volume was made, put the old one back, or change it there first with ALTER ROLE."
for name; do
  password=$(secret "${name}_db_password")
  psql -Xq -v ON_ERROR_STOP=1 -v name="$name" -v password="$password" -d postgres <<'SQL'
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
SELECT format('ALTER ROLE %I PASSWORD %L', :'name', :'password') \gexec
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
SELECT format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', :'name') \gexec
SQL
  echo "database $name: ready"
done
