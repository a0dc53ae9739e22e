"""From recordings to shards: readers, decoding, the quality gate, and the restartable ingest."""
