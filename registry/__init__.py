"""Versions of models: directories kept by the digests of their files, under names and aliases."""
