"""Trellis: an end-to-end MLOps platform in which every decision explains itself."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("trellis-mlops")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
