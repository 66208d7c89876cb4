"""Overview: one page about several finished runs, for choosing a variant and for following one over time.

    runs ─▶ groups with one reference and one set of suites ─▶ table, Pareto frontiers, recommendation
         ─▶ runs of one name in order of time               ─▶ metrics with their limits, what changed, what moved

Nothing is measured here and no verdict changes: everything is read from run.json and the tables beside it.
"""
