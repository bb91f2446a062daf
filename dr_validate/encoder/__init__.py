"""From a checkpoint folder to vectors: `auto`.

`contract`, `spec`, `modules`, `backbone`, `checks`: what the folder says, no torch; `tokenizer`; `model`, its `weights`, the
fastest way `forward` through it, `batches` of texts, `attention` within each, and `cpu`, what makes one fast.
"""
