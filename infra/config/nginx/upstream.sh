#!/bin/bash
# Runs nginx and keeps its list of replicas: every address of the name UPSTREAM (host:port) that says it is ready. nginx
# itself looks a name up once, when it starts, so it would neither find new replicas nor start while one is away.
set -u
host=${UPSTREAM%:*} port=${UPSTREAM##*:}

ready() {
  for address in $(getent ahostsv4 "$host" | awk '$2 == "STREAM" { print $1 }' | sort -u); do
    curl -fs -o /dev/null --max-time 2 "http://$address:$port/v2/health/ready" && echo "server $address:$port max_fails=1 fail_timeout=1s;"
  done
}
write() {  # nothing ready: keep what there was, so that callers get an answer as soon as one is back
  list=$(ready)
  [ -n "$list" ] || [ ! -s /tmp/upstream.conf ] || return 1
  [ -n "$list" ] || list="server 127.0.0.1:1 down;"
  [ "$list" != "$(cat /tmp/upstream.conf 2>/dev/null)" ] || return 1
  echo "$list" > /tmp/upstream.next && mv /tmp/upstream.next /tmp/upstream.conf
}

rm -f /tmp/upstream.conf /tmp/nginx.pid
write
nginx -g 'daemon off;' -c "${NGINX_CONF:-/etc/trellis/nginx.conf}" &
nginx=$!
trap 'kill -QUIT $nginx; wait $nginx; exit' TERM QUIT INT
while kill -0 $nginx 2>/dev/null; do
  sleep 1 & wait $!
  if write; then
    echo "replicas: $(tr '\n' ' ' < /tmp/upstream.conf)"
    nginx -c "${NGINX_CONF:-/etc/trellis/nginx.conf}" -s reload
  fi
done
wait $nginx
