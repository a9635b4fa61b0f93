"""The nouns that cross the walls, each a file with a schema: manifest, embeddings, predictions."""
