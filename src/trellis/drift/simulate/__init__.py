"""The drift simulator: known changes, at known moments, in any dataset of named columns.

    changes = [
        Change("unit", ("temp",), start="2013-07-01", conversion="degF to degC"),
        Change("concept", ("distance",), start="2013-08-01", shape="gradual", span="14D", size=0.5),
    ]
    result = inject(columns, changes, time=time, target=target, seed=1)
    result.columns, result.target     # the changed data
    result.points                     # when and where each change sets in, and which family it belongs to

``inject`` changes a whole dataset; a ``Simulator`` changes a stream chunk by chunk.
"""

from trellis.drift.simulate.change import FAMILIES, Change, Kind, Point, Shape
from trellis.drift.simulate.simulator import Simulated, Simulator, inject

__all__ = ["FAMILIES", "Change", "Kind", "Point", "Shape", "Simulated", "Simulator", "inject"]
