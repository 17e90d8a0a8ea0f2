"""The `zoo` command. Thin: what it does is done by conversion/ and modeling_zoo/."""
