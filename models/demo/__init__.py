"""The bundled models: small, real, and trained on pictures that this folder draws. README.md has their accuracy."""
