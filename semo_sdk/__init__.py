"""semo-sdk."""
