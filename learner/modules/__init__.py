"""Building blocks of the trainable part: ready-made parts go in, keyword-only."""
