"""From a sample to the corpus; read README.md first.

priors.py       every constant, with its reason        evidence.py  what one checkpoint's ranking of the sample shows
calibration.py  how many documents are above, unseen   estimate.py  the metric, its errors, differences of checkpoints
"""
