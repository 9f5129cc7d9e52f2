"""A Lightning Trainer as a peer: `Trainer(..., callbacks=[GossipCallback()])`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from ray_gossip.errors import UserError
from ray_gossip.integrations.membership import Membership, check_one_device, own_folder, size_of
from ray_gossip.loop import shard_of

__all__ = ["GossipCallback", "shard_of"]


class GossipCallback(Callback):
    """Joins the swarm when training begins, with the model on its device and the optimizer made; counts the optimizer's
    steps, so that accumulated batches are one, and steps that a gradient scaler skips are none; takes the final average
    when training ends. What the module logs is reported, at the steps at which Lightning logs it; its own loggers get
    `gossip/peers`, `gossip/megabytes_sent` and `gossip/rounds_…` at the same steps.

    Of several optimizers, as with manual optimization, the first one's steps are counted.

    Args:
        options: of `ray_gossip.join`, such as `initial_peers`, for a script that no driver has started.
    """

    def __init__(self, **options: Any) -> None:
        self._membership = Membership(options, how_to_deal="DataLoader(shard_of(dataset), ...)")
        self._reporter = _Reporter(self._membership)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything is made: refuse what a peer cannot do, and keep apart what the peers' trainers write."""
        if stage != "fit":
            return
        check_one_device(trainer.world_size, "Trainer(devices=1, num_nodes=1)")
        folder = own_folder()
        if folder is not None:
            trainer.loggers = [_apart(logger, trainer, folder) for logger in trainer.loggers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = {id(parameter) for parameter in pl_module.parameters()}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if not any(id(parameter) in own for group in groups for parameter in group["params"]):
            raise UserError(
                "configure_optimizers gives no optimizer, and a peer counts an optimizer's steps: return one"
            )
        self._membership.begin(pl_module, trainer.optimizers[0])
        self._reporter.others = list(trainer.loggers)
        trainer.loggers = [*trainer.loggers, self._reporter]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (size := size_of(batch)) is not None:
            self._membership.saw(size)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, agree=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end(trainer, agree=False)

    def _end(self, trainer: Trainer, *, agree: bool) -> None:
        trainer.loggers = [logger for logger in trainer.loggers if logger is not self._reporter]
        self._membership.end(agree=agree)


def _apart(logger: Logger, trainer: Trainer, folder: str) -> Logger:
    """One of this peer's own in place of the one that a Trainer makes by itself, whose next free number other peers
    take, too. One that a script has made writes where the script says."""
    if not isinstance(logger, (TensorBoardLogger, CSVLogger)):
        return logger
    is_default = (logger.name, logger.save_dir) == ("lightning_logs", trainer.default_root_dir)
    return type(logger)(trainer.default_root_dir, version=folder) if is_default else logger


class _Reporter(Logger):
    """Hears what the module logs, when Lightning logs it."""

    name = "ray_gossip"
    version = ""

    def __init__(self, membership: Membership) -> None:
        super().__init__()
        self._membership = membership
        self.others: list[Logger] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        ours = self._membership.report(metrics)
        for logger in self.others if ours else ():
            logger.log_metrics(ours, step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """They are in the script."""
