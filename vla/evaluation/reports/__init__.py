"""HTML reports of evaluations and of `vla demo`."""
