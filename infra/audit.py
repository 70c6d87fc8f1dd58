"""Audit the pinned dependencies: known vulnerabilities (pip-audit, needs its database) and licences (needs nothing).

Exit code 0: nothing found. 1: a vulnerability, or a licence that is not allowed. 2: vulnerabilities could not be looked
up, so nothing is said about them. ``--offline`` looks at licences alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"

_PERMISSIVE = re.compile(
    r"MIT|Apache|BSD|\bISC\b|PSF|Python Software Foundation|Zlib|ZPL|CC0|Unlicense|BSL-1\.0|CNRI|\bTCL\b|HPND|Artistic",
    re.I,
)
_WEAK = re.compile(r"\bMPL|Mozilla|\bLGPL|Lesser General", re.I)
# What metadata do not say, or say otherwise, each with the reason why it may stay.
EXCEPTIONS = {
    "nvidia-nccl-cu12": "asked for by XGBoost's wheel, for several GPUs; loaded by nothing here",
}
_TEXTS = {
    "Permission is hereby granted, free of charge": "MIT",
    "Apache License": "Apache-2.0",
    "Redistribution and use in source and binary forms": "BSD",
}

_LIKE = {"permissive": "MIT", "weak copyleft": "MPL-2.0", "refused": "GPL-3.0-only", "unknown": "Other"}
Verdict = Literal["permissive", "weak copyleft", "refused", "unknown"]


@dataclass(frozen=True)
class Looked:
    """What a look-up of vulnerabilities found.

    Attributes:
        checked: How many packages the database knew.
        skipped: How many it did not answer for.
        found: ``name version: id, fixed in …``, one per vulnerability.
    """

    checked: int
    skipped: int
    found: tuple[str, ...]


def judge_licence(text: str) -> Verdict:
    """Judge a licence expression or a list of classifiers; of alternatives the best counts, of a sum the worst."""
    order: list[Verdict] = ["permissive", "weak copyleft", "unknown", "refused"]
    while group := re.search(r"\(([^()]*\b(?:AND|OR)\b[^()]*)\)", text):
        text = text[: group.start()] + _LIKE[judge_licence(group[1])] + text[group.end() :]
    best: Verdict = "refused" if text.strip() else "unknown"
    for alternative in re.split(r"\bOR\b|;", text):
        parts = [part for part in re.split(r"\bAND\b", alternative.strip(" ()")) if part.strip(" ()")]
        verdicts = [_judge_one(part) for part in parts] or ["unknown"]
        worst = max(verdicts, key=order.index)
        best = min(best, worst, key=order.index)
    return best


def _judge_one(part: str) -> Verdict:
    if _WEAK.search(part):
        return "weak copyleft"
    if re.search(r"\bA?GPL|General Public License|Proprietary|Commons Clause|SSPL|BUSL|Business Source", part, re.I):
        return "refused"
    return "permissive" if _PERMISSIVE.search(part) else "unknown"


def licence_of(found: Distribution) -> str:
    """Return what a distribution says of its licence: expression, classifiers, field, or the text of its file."""
    data = found.metadata
    if data.get("License-Expression"):
        return str(data["License-Expression"])
    classifiers = [c.rpartition("::")[2].strip() for c in data.get_all("Classifier") or [] if c.startswith("License")]
    named = [c for c in classifiers if c not in ("OSI Approved", "DFSG approved")]
    if named:
        return "; ".join(named)
    first = (data.get("License") or "").strip().partition("\n")[0]
    if first:
        return first[:100]
    for path in found.files or ():
        if re.match(r"(licen[cs]e|copying)", path.name, re.I):
            text = Path(str(path.locate())).read_text(errors="replace")
            return next((name for start, name in _TEXTS.items() if start in text), "")
    return ""


def judge_report(report: dict[str, Any]) -> Looked:
    """Read pip-audit's JSON. It says "no known vulnerabilities" of packages that it could not look up, too."""
    packages = report["dependencies"]
    skipped = sum("skip_reason" in package for package in packages)
    found = tuple(
        f"{p['name']} {p['version']}: {v['id']}, fixed in {', '.join(v['fix_versions']) or 'no release yet'}"
        for p in packages
        for v in p.get("vulns", ())
    )
    return Looked(len(packages) - skipped, skipped, found)


def look_up() -> Looked | str:
    """Ask pip-audit about the lock; a sentence where it could not be asked."""
    command = [str(Path(sys.executable).with_name("pip-audit")), "-r", str(LOCK), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"pip-audit did not run: {type(error).__name__}"
    try:
        return judge_report(json.loads(done.stdout))
    except (ValueError, KeyError):
        last = done.stderr.strip().splitlines()
        return last[-1][:300] if last else "pip-audit said nothing"


def licences() -> dict[str, tuple[Verdict, str]]:
    """Return verdict and licence of every pinned package that is installed, by name."""
    found: dict[str, tuple[Verdict, str]] = {}
    for line in LOCK.read_text().splitlines():
        name = re.split(r"[\[=<>;\s]", line, maxsplit=1)[0]
        try:
            text = licence_of(distribution(name)) if name and not name.startswith("#") else None
        except PackageNotFoundError:
            continue  # for another platform
        if text is not None:
            found[name] = ("permissive", EXCEPTIONS[name]) if name in EXCEPTIONS else (judge_licence(text), text)
    return found


def main() -> int:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="Licences alone.")
    say = sys.stdout.write
    offline = parser.parse_args().offline
    known = licences()
    by = {v: sorted(n for n, (w, _) in known.items() if w == v) for v in ("permissive", "weak copyleft")}
    bad = {name: (verdict, text) for name, (verdict, text) in known.items() if verdict in ("refused", "unknown")}
    say(f"Licences of {len(known)} pinned packages: {len(by['permissive'])} permissive, ")
    say(f"{len(by['weak copyleft'])} weak copyleft ({', '.join(by['weak copyleft'])}), {len(bad)} to be looked at.\n")
    for name, (verdict, text) in sorted(bad.items()):
        say(f"  {name}: {verdict}: {text or 'says nothing of its licence'}\n")
    if offline:
        return 1 if bad else 0
    looked = look_up()
    if isinstance(looked, str) or looked.checked == 0:
        why = looked if isinstance(looked, str) else f"it did not answer for any of {looked.skipped} packages"
        say(f"Vulnerabilities: NOT CHECKED. The database was not reached ({why}).\n")
        say("Nothing is known of them. Run `make audit` again where pip-audit can reach its database.\n")
        return 1 if bad else 2
    say(f"Vulnerabilities: {len(looked.found)} known in {looked.checked} packages looked up")
    say(f"; NOT CHECKED: {looked.skipped}, which the database does not have.\n" if looked.skipped else ".\n")
    for line in looked.found:
        say(f"  {line}\n")
    return 1 if bad or looked.found else 2 if looked.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
