"""One model on many ranks: how they are laid out, and what each way of dividing it does.

`layout` says how, `ranks` makes the process groups, and `parallelize` divides a model. `fsdp` shards
parameters, `tensor` divides heads and columns, `context` the tokens of a row, `pipeline` the blocks.
"""
