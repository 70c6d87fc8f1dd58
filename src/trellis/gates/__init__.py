"""The promotion gate: may a candidate take traffic? A pure decision on small, replayable evidence."""

from trellis.gates.decide import decide, paired_difference
from trellis.gates.evidence import GateInputs, PairedBlocks, SegmentBlocks, gate_inputs
from trellis.gates.paired import Paired, paired

__all__ = [
    "GateInputs",
    "Paired",
    "PairedBlocks",
    "SegmentBlocks",
    "decide",
    "gate_inputs",
    "paired",
    "paired_difference",
]
