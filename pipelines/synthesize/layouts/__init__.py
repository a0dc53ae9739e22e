"""The layouts, one file a data set: which recordings are made, and how they lie on disk."""
