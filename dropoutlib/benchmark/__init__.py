"""Times the layers against torch: ``python -m dropoutlib.benchmark`` prints a Markdown table of all of them.

Forward and backward of float32 tensors. All variants take turns within a round, and a ratio is the median of the
ratios of the rounds, so that a disturbance of the machine meets both sides of a ratio. For differences, which a busy
machine multiplies, the least times of all rounds are compared. The floor is what a layer costs without noise; for noise
on elements it is ``x * 2``, one multiplication. With one thread on the CPU it is processor time that is measured.
"""

from .compiled import kernels_table
from .details import cost_table, dropconnect_table, maps_table, measure, prediction_table, recurrent_table, sizes_table
from .methods import methods_table

__all__ = ["cost_table", "dropconnect_table", "kernels_table", "maps_table", "measure", "methods_table",
           "prediction_table", "recurrent_table", "sizes_table"]
