"""A loopback Hub that the client libraries of this process, or of a fresh one, take for the real one."""

import os
import subprocess
import sys

import huggingface_hub
import transformers.utils.hub as transformers_hub
from huggingface_hub import constants
from huggingface_hub.utils import close_session

TOKENS = {"hf_of_user": "user", "hf_of_guest": "guest"}


def point_at(monkeypatch, hub, cache, token="hf_of_user"):
    """Every call of huggingface_hub in this process goes to `hub`, with an empty cache and no waiting."""
    template = hub.endpoint + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    values = {"ENDPOINT": hub.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False}
    values |= {"HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(cache), "HUGGINGFACE_HUB_CACHE": str(cache)}
    for name, value in values.items():
        if hasattr(constants, name):
            monkeypatch.setattr(constants, name, value)
    # The module's own functions, such as file_exists, are methods of one instance made at import.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    use_token(monkeypatch, token)
    # The client of an offline session refuses by itself.
    close_session()


def use_token(monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")


def fresh_process(hub, home, arguments, token=None, path=(), python=sys.executable):
    """Runs Python on a machine that has never seen zoo or this Hub; -> the finished process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
