"""The graph IR: types, graph, ops, text, verifier, reference interpreter, and the engine manifest. Imports no other room."""
