"""A text corpus into token shards."""
