"""NVFlare's simulator for simulators.py, in an environment of its own: its FedAvg recipe, nothing changed.

    python _simulators_nvflare.py WORK OUT THREADS

Its clients take turns at THREADS processes where there are more of them than that, and each turn is a new
process, which loads everything anew; as many threads as clients would be as many copies of the model. The
sites' script is `_simulators_nvflare_site.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from _simulators_plain import BEGAN, Work, keep, load_model, mark, tensors_of
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor

DOT = "__dot__"
"""Names of parameters have no dots."""


class AdapterModule(torch.nn.Module):
    """The adapter alone, as the model that federates."""

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work
        for name, tensor in tensors_of(load_model(Work.read(Path(work)))).items():
            self.register_parameter(name.replace(".", DOT), torch.nn.Parameter(tensor))


class Noting(PTFileModelPersistor):  # type: ignore[misc]  # nvflare is untyped
    """Notes when a round has ended, and what came out, beside what it saves."""

    def __init__(self, out: str, model: Any = None) -> None:
        super().__init__(model=model)
        self.out, self.round = out, 0

    def load_model(self, fl_ctx: Any) -> Any:
        """As ever; the rounds begin then."""
        found = super().load_model(fl_ctx)
        mark(Path(self.out), BEGAN)
        return found

    def save_model(self, ml: Any, fl_ctx: Any) -> Any:
        """After each round."""
        super().save_model(ml, fl_ctx)
        self.round += 1
        weights = ml[ModelLearnableKey.WEIGHTS]
        tensors = {name.replace(DOT, "."): torch.as_tensor(value) for name, value in weights.items()}
        keep(Path(self.out), self.round, tensors)


def main(folder: str, out: str, threads: int) -> None:
    """The whole run."""
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe.sim_env import SimEnv

    work = Work.read(Path(folder))
    initial: Any = {"class_path": "_simulators_nvflare.AdapterModule", "args": {"work": folder}}
    recipe = FedAvgRecipe(
        name="simulators",
        model=initial,
        model_persistor=Noting(out, initial),
        min_clients=work.count,
        num_rounds=work.rounds,
        train_script=str(Path(__file__).with_name("_simulators_nvflare_site.py")),
        train_args=folder,
    )
    clients = [f"site-{site}" for site in range(work.count)]
    environment = SimEnv(clients=clients, num_threads=threads, workspace_root=f"{out}/workspace")
    print(recipe.execute(environment).get_status())


if __name__ == "__main__":
    from _simulators_nvflare import main as imported  # its classes are named by their module

    imported(sys.argv[1], sys.argv[2], int(sys.argv[3]))
