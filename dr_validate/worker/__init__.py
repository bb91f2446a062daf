"""The process that holds the device.

`main`: its requests and answers; `suite`: collections that share a checkpoint; `pipeline`: the story of one checkpoint;
`samples`, `baselines`: what is ranked;
`encoding`, `token_cache`: a checkpoint at hand; `estimates`: from a ranking to corrected metrics; `results`: files.
"""
