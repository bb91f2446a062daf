"""From a checkpoint folder to vectors: `auto`.

`contract`, `spec`, `modules`, `prompts`, `lengths`, `backbone`, `checks`: what the folder says, no torch; `weights`,
`transformer`, `tower`, `forward`, `attention`, `batches`, `pooling`, `heads`, `linears`, `threads`: the model; `tokenizer`.
"""
