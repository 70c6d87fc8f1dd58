"""The conformance kit: small named checks that every plug-in passes, ours and third parties' alike.

From a third party's pytest, with test ids that read ``NAME:check_name``::

    import pytest
    from trellis.checks import checks_for

    @pytest.mark.parametrize("check", checks_for("my_model"), ids=str)
    def test_conformance(check):
        check()

On the command line: ``trellis models check NAME``. In a flow: ``run_checks(NAME, artifact=directory)``, whose report is
stored with the version.
"""

from trellis.checks.report import Report, Result
from trellis.checks.run import BoundCheck, check_names, checks_for, run_checks
from trellis.checks.suite import CheckFailed, CheckSkipped

__all__ = [
    "BoundCheck",
    "CheckFailed",
    "CheckSkipped",
    "Report",
    "Result",
    "check_names",
    "checks_for",
    "run_checks",
]
