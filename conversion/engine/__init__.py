"""The conversion itself: rules, plans, both directions, configs, and what becomes a model."""
