"""The bill of materials lists what the lock pins; the scan sees a secret that is none of the known ones."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pinned(lock: Path) -> dict[str, str]:
    lines = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", lock.read_text(), re.M)
    return {name.lower().replace("_", "-"): version for name, version in lines}


def test_an_images_bill_lists_every_package_of_its_lock(tmp_path: Path):
    lock = ROOT / "infra/docker/serving.lock"
    out = tmp_path / "sbom.json"
    program = Path(sys.executable).with_name("cyclonedx-py")
    options = ["--pyproject", ROOT / "pyproject.toml", "--mc-type", "application", "--of", "JSON", "-o", out]
    subprocess.run([program, "requirements", lock, *options], check=True, capture_output=True)
    bill = json.loads(out.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    found = {one["name"].lower().replace("_", "-"): one["version"] for one in bill["components"]}
    assert found == pinned(lock)
    assert bill["metadata"]["component"]["name"] == "trellis-mlops"


def test_the_scan_sees_a_new_secret_and_no_known_line(tmp_path: Path):
    program = Path(sys.executable).with_name("detect-secrets-hook")
    leak = tmp_path / "settings.py"
    leak.write_text('AWS = "AKIA' + "IOSFODNN7" + 'EXAMPLA"\n')
    baseline = tmp_path / "baseline"  # the hook brings line numbers in it up to date
    shutil.copy(ROOT / ".secrets.baseline", baseline)
    bad = subprocess.run([program, "--baseline", baseline, leak], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 1
    assert "AWS Access Key" in bad.stdout
    good = subprocess.run(
        [program, "--baseline", baseline, "docker-compose.yml"], cwd=ROOT, capture_output=True, text=True
    )
    assert good.returncode in (0, 3), good.stdout  # 3: the lines have moved, and the baseline was brought up to date
