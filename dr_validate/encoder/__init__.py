"""From a checkpoint folder to vectors: `auto`.

`contract`, `spec`, `modules`, `lengths`, `backbone`, `checks`: what the folder says, no torch; `weights`,
`transformer`, `tower`, `forward`, `attention`, `batches`, `heads`, `linears`, `threads`: the model; `tokenizer`.
"""
