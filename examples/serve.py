"""`transformers serve` for a zoo folder: serve.py FOLDER [options of `transformers serve`].

The command looks a model's class up by name in the transformers package, where no remote code ever is; this puts zoo's
installed classes there first. `transformers chat` is a client of it; the folder's tokenizer needs a chat template then:

    python examples/serve.py output/stories --device cpu --port 8000
    transformers chat output/stories http://localhost:8000
    curl localhost:8000/v1/completions -H "Content-Type: application/json" \\
         -d '{"model": "output/stories", "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}'
"""

import sys

import transformers
from transformers.cli.transformers import main

import modeling_zoo

for name in modeling_zoo.__all__:
    if name.startswith("ZooFor"):
        setattr(transformers, name, getattr(modeling_zoo, name))

if __name__ == "__main__":
    sys.argv = ["transformers", "serve", *sys.argv[1:]]
    main()
