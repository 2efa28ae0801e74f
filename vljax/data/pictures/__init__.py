"""Pictures: reading and drawing them, and the published formats that hold them."""
