"""Decoding, one file a kind of container; nothing here knows of data sets or shards."""
