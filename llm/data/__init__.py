"""Token shards on disk, the closed-form training order, the loader, objectives' views of its samples, and
batches of conversations.
"""
