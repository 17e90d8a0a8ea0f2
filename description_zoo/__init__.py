"""What a model costs and looks like: measured on the meta device, drawn, and written into its card."""
