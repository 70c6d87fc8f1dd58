"""The packages here are third parties: their tests run in an environment of theirs, see test_third_party.py."""

collect_ignore_glob = ["trellis-plugin-*"]
