"""Code generated from the .proto files in this folder."""
