"""Tables that steps hand to each other, each a file with a schema: manifest, captions, embeddings, predictions."""
