#!/bin/sh
# Trains FIRST_MODEL if it has no rollout plan yet; an empty name trains nothing.
set -eu
[ -n "${FIRST_MODEL:-}" ] || { echo "first-model: none is asked for (STACK_FIRST_MODEL)"; exit 0; }
if trellis rollout show "$FIRST_MODEL" > /dev/null 2>&1; then
  echo "first-model: $FIRST_MODEL has a plan already"
  exit 0
fi
trellis flow train "$FIRST_MODEL" ${FIRST_MODEL_UNTIL:+--until "$FIRST_MODEL_UNTIL"}
