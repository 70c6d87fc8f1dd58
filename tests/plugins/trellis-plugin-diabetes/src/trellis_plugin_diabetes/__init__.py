"""Progression of diabetes after one year, as a Trellis plug-in."""

from trellis_plugin_diabetes.plugin import plugin

__all__ = ["plugin"]
