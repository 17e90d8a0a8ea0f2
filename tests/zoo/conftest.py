"""What several tests in a browser share: the site, built once, with the explorer in it."""

from os import environ
from pathlib import Path

import pytest
from browser import served


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built site; `ZOO_SITE` names one that is there already."""
    if folder := environ.get("ZOO_SITE"):
        return Path(folder).resolve()
    from zoo.site.build import build

    folder = tmp_path_factory.mktemp("site")
    build(folder)
    return folder


@pytest.fixture(scope="session")
def address(site):
    """Where the site is served."""
    with served(site) as base:
        yield base
