"""Metrics of a ranking.

`ranx` computes them, those of other packages too; `gains`: names parsed, and each as a sum over relevant documents, for the
estimator, and for full-corpus rankings, whose scores are not kept.
"""
