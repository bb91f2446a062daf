"""From a checkpoint folder to vectors: `auto`.

`auto`, with `spec`, `modules`, `backbone`, `checks`: what the folder says, no torch; `tokenizer`; `model`, its `weights`;
`forward`: batches, and the fastest way through it; `attention` within each text; `cpu`: what makes one fast.
"""
