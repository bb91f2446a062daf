"""Metrics of a ranking.

`ranx` computes them, those of other packages too; `gains`: which there are, and each as a sum over relevant documents.
"""
