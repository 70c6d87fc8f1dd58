"""The way in: what nginx tells the service about a request is nginx's word, not the caller's."""

import re
from pathlib import Path

NGINX = Path(__file__).parents[2] / "infra" / "config" / "nginx" / "nginx.conf"


def test_a_requests_name_is_made_by_the_gateway_and_never_taken_from_its_caller():
    """A name that a caller always sends would leave all of its predictions but the first out of what is counted."""
    directives = re.sub(r"#.*", "", NGINX.read_text())
    assert re.findall(r"proxy_set_header\s+X-Prediction-Id\s+(\S+);", directives, re.I) == ["$request_id"]
    assert "$http_x_prediction_id" not in directives.lower()
    # Every location that hands requests on sets it: one with headers of its own forgets those of the level above.
    blocks = [part for part in re.findall(r"location[^{]*\{([^{}]*)\}", directives) if "proxy_pass" in part]
    assert blocks
    assert all("X-Prediction-Id" in block for block in blocks)
