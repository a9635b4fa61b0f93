"""Models that turn pixels and texts into features, and features into scores."""
