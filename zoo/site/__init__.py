"""The pages that are computed: guides of concepts. From a checkout, since they show the references of its tests."""
