"""Name the platform's images by digest in the cluster overlay; committing the change is the deployment.

``python infra/k8s/pin_images.py --commit SHA serving=registry/trellis/serving@sha256:… worker=… tools=…``
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

OVERLAY = Path(__file__).parent / "overlays/cluster/kustomization.yaml"
IMAGES = ("serving", "worker", "tools")
_REFERENCE = re.compile(r"(?P<name>[a-z0-9.-]+(?::\d+)?(?:/[a-z0-9._-]+)+)@(?P<digest>sha256:[0-9a-f]{64})")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNSET = "sha256:" + "0" * 64


def pinned(text: str, commit: str, references: dict[str, str]) -> str:
    """Return the overlay's text with images and commit put in; everything else stays as it is.

    Args:
        text: Of the overlay's ``kustomization.yaml``.
        commit: The Git commit that the images were built from, 40 digits.
        references: ``registry/name@sha256:…`` by image.

    Raises:
        ValueError: An image is missing or unknown, or a digest or the commit is none.
    """
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"{commit!r} is no commit: give all 40 digits, as git rev-parse HEAD does.")
    if set(references) != set(IMAGES):
        raise ValueError(f"One commit's images belong together: give {', '.join(IMAGES)}, not {sorted(references)}.")
    for image, reference in references.items():
        match = _REFERENCE.fullmatch(reference)
        if not match or match["digest"] == _UNSET:
            raise ValueError(f"{image}={reference} names no digest. Write {image}=registry/name@sha256:….")
        line = f'  - {{name: trellis/{image}, newName: {match["name"]}, digest: "{match["digest"]}"}}'
        text, count = re.subn(rf"^  - \{{name: trellis/{image},.*\}}$", line, text, flags=re.M)
        if count != 1:
            raise ValueError(f"The overlay has {count} lines for trellis/{image}, not one.")
    text, count = re.subn(r"\{trellis/commit: \w+\}", f"{{trellis/commit: {commit}}}", text)
    if count != 1:
        raise ValueError(f"The overlay names {count} commits, not one.")
    return text


def main() -> int:
    """Change the overlay, or say why not and leave it alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--overlay", type=Path, default=OVERLAY)
    parser.add_argument("images", nargs="*", metavar="IMAGE=REFERENCE")
    given = parser.parse_args()
    try:
        references = dict(one.split("=", 1) if "=" in one else (one, "") for one in given.images)
        text = pinned(given.overlay.read_text(), given.commit, references)
    except (OSError, ValueError) as error:
        print(f"Nothing is pinned. {error}", file=sys.stderr)
        return 1
    part = given.overlay.with_suffix(".part")
    part.write_text(text)
    os.replace(part, given.overlay)
    print(f"{given.overlay} names the images of {given.commit}. Commit it to deploy them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
