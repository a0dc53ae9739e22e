"""Shards -> batches -> adapters -> snapshots: the streaming continual learner."""
