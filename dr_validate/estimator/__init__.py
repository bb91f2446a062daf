"""From a sample to the corpus; read README.md first.

priors.py    every constant, with its reason
evidence.py  what one checkpoint's ranking of the sample shows
estimate.py  how many documents are above, unseen; the metric, its errors, differences of checkpoints
"""
