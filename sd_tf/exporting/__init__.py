"""Models for places without this package: SavedModel, LiteRT, ONNX."""
