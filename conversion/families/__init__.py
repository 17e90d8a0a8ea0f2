"""One file of data for each `model_type`; what several share stands in `shared_*.py`."""
