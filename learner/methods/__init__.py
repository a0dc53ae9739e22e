"""Methods: one file each, with the hooks of `methods.base`."""
