"""Pages that are computed. The gallery of `zoo site` is part of an installation; guides and the site of `make docs` are
written from a checkout, since they show the references of its tests."""
