"""Quality and cost, measured."""
