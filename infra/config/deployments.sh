#!/bin/sh
# Makes the work pool, of type WORK_POOL_TYPE, and the deployments in it, with the schedule of every model's loop
# (TRELLIS_LOOP_MINUTES); running it again brings them up to date.
set -eu
prefect work-pool inspect "$TRELLIS_WORK_POOL" > /dev/null 2>&1 ||
  prefect work-pool create --type "$WORK_POOL_TYPE" ${WORK_POOL_TEMPLATE:+--base-job-template "$WORK_POOL_TEMPLATE"} "$TRELLIS_WORK_POOL"
trellis flow deploy
