"""What an NVFlare client of simulators.py runs: it loads the model, and trains when it is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import nvflare.client as flare
import torch
from _simulators_nvflare import DOT
from _simulators_plain import Work, load_model, put, train_site, trained


def main(folder: str) -> None:
    """Until the run has ended."""
    torch.set_num_threads(1)
    flare.init()
    site = int(flare.get_site_name().removeprefix("site-"))
    work = Work.read(Path(folder))
    model = load_model(work)
    while flare.is_running():
        message = flare.receive()
        if message is None:
            break
        tensors = {name.replace(DOT, "."): torch.as_tensor(v) for name, v in message.params.items()}
        put(model, tensors)
        loss = train_site(model, work, message.current_round + 1, site)
        params = {name.replace(".", DOT): p.detach().clone() for name, p in trained(model).items()}
        flare.send(flare.FLModel(params=params, metrics={"loss": loss}))


if __name__ == "__main__":
    main(sys.argv[1])
