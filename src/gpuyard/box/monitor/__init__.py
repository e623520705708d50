"""The monitor: a small process beside the stage runner that looks at the machine now and then, and tells what is wrong.

The runner starts it (:mod:`gpuyard.box.monitor.companion`) and it ends with the runner. What it looks at is the table
``CHECKS`` of :mod:`gpuyard.box.monitor.checks`.
"""
