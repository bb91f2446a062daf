"""How a source reaches W&B.

`project`: which queries there are, and the one connection of a source, with what is known of versions; `api`: sends a query,
and says what an answer that is none means; `http`: downloads files, every byte checked; `versions`: what a version holds, and
whether that is a checkpoint, from its manifest.
"""
