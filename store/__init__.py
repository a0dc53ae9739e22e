"""The vocabulary of Palimpsest and everything that lies on disk; speaks numpy and Arrow, never torch."""
