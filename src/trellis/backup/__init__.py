"""Backup and restore of everything Trellis keeps: the home, databases, objects; whole or not at all.

A backup is a directory. It is made beside its final name and renamed when every byte is on the disk and the manifest
lists every part with its digest, so a directory of that name with a manifest is a finished backup, and nothing else is.

What refers is copied before what is referred to: first databases (plans, decisions, the registry), then files and
objects, which are written once and not changed. So every artifact that a saved plan names is in the backup, while the
platform goes on working.
"""

from trellis.backup.away import fetch, send
from trellis.backup.manifest import BackupManifest, Part, verify
from trellis.backup.restore import restore
from trellis.backup.save import backup

__all__ = ["BackupManifest", "Part", "backup", "fetch", "restore", "send", "verify"]
