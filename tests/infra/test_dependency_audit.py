"""The dependency audit: licences of what is installed, and no "all clear" about what was not looked up."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("dependency_audit", ROOT / "infra" / "audit.py")
audit = importlib.util.module_from_spec(SPEC)
sys.modules["dependency_audit"] = audit
SPEC.loader.exec_module(audit)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("MIT", "permissive"),
        ("Apache-2.0 WITH LLVM-exception AND BSD-3-Clause", "permissive"),
        ("Artistic License; GNU General Public License v2 or later (GPLv2+)", "permissive"),
        ("GPL-3.0-only OR MIT", "permissive"),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", "weak copyleft"),
        ("LGPL-3.0-only", "weak copyleft"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "weak copyleft"),
        ("(MIT AND GPL-2.0-only) OR BSD-3-Clause", "permissive"),
        ("GNU Lesser General Public License v3", "weak copyleft"),
        ("MIT AND GPL-3.0-only", "refused"),
        ("GNU Affero General Public License v3", "refused"),
        ("AGPL-3.0", "refused"),
        ("BUSL-1.1", "refused"),
        ("LicenseRef-NVIDIA-Proprietary", "refused"),
        ("", "unknown"),
        ("Other", "unknown"),
    ],
)
def test_of_alternatives_the_best_counts_and_of_a_sum_the_worst(text, verdict):
    assert audit.judge_licence(text) == verdict


def test_every_pinned_package_has_a_licence_that_is_allowed():
    done = subprocess.run(
        [sys.executable, ROOT / "infra" / "audit.py", "--offline"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(audit.licences()) > 150
    assert " 0 to be looked at" in done.stdout


def test_what_was_skipped_is_not_called_clean():
    skipped = {"name": "a", "skip_reason": "Dependency not found"}
    clean = {"name": "b", "version": "1", "vulns": []}
    bad = {
        "name": "c",
        "version": "2",
        "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}, {"id": "X", "fix_versions": []}],
    }
    assert audit.judge_report({"dependencies": [skipped, skipped]}) == audit.Looked(0, 2, ())
    looked = audit.judge_report({"dependencies": [skipped, clean, bad]})
    assert (looked.checked, looked.skipped) == (2, 1)
    assert looked.found == ("c 2: PYSEC-1, fixed in 3", "c 2: X, fixed in no release yet")


def test_a_database_that_is_away_is_said_and_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    for answer in ("Connection refused", audit.Looked(0, 280, ())):
        monkeypatch.setattr(audit, "look_up", lambda answer=answer: answer)
        assert audit.main() == 2
        assert "NOT CHECKED" in capsys.readouterr().out
    monkeypatch.setattr(audit, "look_up", lambda: audit.Looked(280, 0, ()))
    assert audit.main() == 0
    monkeypatch.setattr(audit, "look_up", lambda: audit.Looked(279, 1, ()))
    assert audit.main() == 2
    monkeypatch.setattr(audit, "look_up", lambda: audit.Looked(280, 0, ("a 1: PYSEC-1, fixed in 2",)))
    assert audit.main() == 1
    assert "PYSEC-1" in capsys.readouterr().out
