"""Metrics of a ranking.

`ranx` computes them, those of other packages too, `names` says which there are, `gains` writes each as a sum over relevant
documents.
"""
