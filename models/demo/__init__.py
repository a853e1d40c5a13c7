"""The bundled models: small, real, and trained on pictures drawn here. README.md tells how well they see."""
