"""Drawings of a graph: Mermaid and Graphviz text, and a picture."""
