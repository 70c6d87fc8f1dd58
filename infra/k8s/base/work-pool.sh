#!/bin/sh
# Makes the work pool and the deployments. The pool's template gets the worker's image, what a flow's Job asks for of the
# CPU, and the settings that every other process has, so that a flow's Job differs from them in nothing.
set -eu
python - <<'END'
import json, os
template = json.load(open("/etc/work-pool/work-pool.json"))
variables = template["variables"]["properties"]
variables["image"]["default"] = os.environ["FLOW_IMAGE"]
variables["cpu_request"]["default"] = os.environ["FLOW_CPU"]
told = ("TRELLIS_", "AWS_", "PREFECT_API_URL", "RAY_ADDRESS")
variables["env"]["default"] = {name: value for name, value in sorted(os.environ.items()) if name.startswith(told)}
json.dump(template, open(os.environ["WORK_POOL_TEMPLATE"], "w"))
END
/etc/trellis/deployments.sh
prefect work-pool update --base-job-template "$WORK_POOL_TEMPLATE" "$TRELLIS_WORK_POOL"
