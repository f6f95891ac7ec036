"""TinyWorld: a procedural picture world with every task of the originals, drawn in code."""
