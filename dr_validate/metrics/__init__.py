"""Metrics of a ranking.

`ranx` computes them, `names` says which there are, `gains` writes each as a sum over relevant documents; `own`: of other
packages.
"""
