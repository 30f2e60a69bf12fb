"""World models: a recurrent state-space model, its losses as pure functions, and the episodes that it learns from."""
