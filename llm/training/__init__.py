"""How a model learns: loss, optimizer, schedule, the step, sharding, checkpoints, and the loop that joins
them.
"""
