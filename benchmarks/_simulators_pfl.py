"""Apple's pfl-research for simulators.py, in an environment of its own: its backend, FedAvg and PyTorchModel.

    torchrun --nproc-per-node N _simulators_pfl.py WORK OUT

Its own distribution: one process of one thread a core, which add their sums up through gloo. Each user's
batches are the work's; it trains none of its own choosing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["PFL_PYTORCH_DEVICE"] = "cpu"

import torch
from _simulators_plain import BEGAN, Work, keep, load_model, loss_of, mark, tensors_of
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

NEVER = 1 << 30
FIRST = 1
"""Iteration that a run begins with: in iteration 0 pfl scores every user, twice, whatever it is asked."""


class Planned(Dataset):
    """A site's minibatches of the present round."""

    def __init__(self, work: Work, round: int, site: int) -> None:
        super().__init__(raw_data=(), user_id=str(site))
        self._work, self._round, self._site = work, round, site

    def __len__(self) -> int:
        return int(self._work.batches[self._round - 1, self._site].size)

    def iter(self, batch_size: int | None) -> Iterator[dict[str, torch.Tensor]]:  # noqa: ARG002 - the work's
        """In the work's order."""
        yield from self._work.minibatches(self._round, self._site)


class Losses(torch.nn.Module):
    """The model with the two methods that pfl asks of one."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, **batch: torch.Tensor) -> torch.Tensor:
        """As everybody's."""
        return loss_of(self.model, batch)

    def metrics(self, **batch: torch.Tensor) -> dict[str, Any]:
        """The loss; nobody asks for it here."""
        with torch.inference_mode():
            return {"loss": Weighted.from_unweighted(float(loss_of(self.model, batch)))}


class Noting(TrainingProcessCallback):
    """Says which round it is, and keeps what came out."""

    def __init__(self, out: Path, model: torch.nn.Module, first: bool) -> None:
        self.out, self.model, self.first, self.round = out, model, first, 1

    def after_central_iteration(
        self,
        aggregate_metrics: Metrics,  # noqa: ARG002 - pfl's signature
        model: PyTorchModel,  # noqa: ARG002 - as above
        *,
        central_iteration: int,
    ) -> tuple[bool, Metrics]:
        """After each round."""
        if self.first:
            keep(self.out, central_iteration + 1 - FIRST, tensors_of(self.model))
        self.round = central_iteration + 2 - FIRST
        return False, Metrics()


def main(folder: str, out: str) -> None:
    """The whole run."""
    torch.set_num_threads(1)
    work = Work.read(Path(folder))
    plain = load_model(work)
    moving = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    model = PyTorchModel(
        Losses(plain),
        local_optimizer_create=lambda _, lr: torch.optim.AdamW(moving, lr=lr, weight_decay=0.0),
        central_optimizer=torch.optim.SGD(moving, lr=1.0),
    )
    noting = Noting(Path(out), plain, first=pytorch_ops.distributed.global_rank == 0)
    dataset = FederatedDataset(
        lambda site: Planned(work, noting.round, site), MinimizeReuseUserSampler(range(work.count))
    )
    if noting.first:
        mark(noting.out, BEGAN)
    algorithm = FederatedAveraging()
    algorithm._current_central_iteration = FIRST  # noqa: SLF001 - as a run that is resumed
    algorithm.run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.rounds + FIRST,
            evaluation_frequency=NEVER,
            train_cohort_size=work.count,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=dataset, val_data=dataset, postprocessors=[WeightByUser()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=work.settings["learning_rate"],
            local_batch_size=work.settings["batch"],
        ),
        callbacks=[noting],
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
