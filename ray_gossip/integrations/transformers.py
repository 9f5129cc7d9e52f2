"""A Hugging Face Trainer as a peer: `prepare_trainer(trainer)`, as with Ray Train, or the callback alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ray_gossip.errors import UserError
from ray_gossip.integrations.membership import Membership, check_one_device, own_folder
from ray_gossip.loop import shard_of

# what a trainer logs of its own speed, which is no curve of a peer
_OF_MACHINE = ("_runtime", "_per_second", "total_flos")


def prepare_trainer(trainer: Trainer, **options: Any) -> Trainer:
    """The same trainer, as a peer: with this peer's part of `train_dataset`, a folder of its own in `output_dir`, and
    the callback ahead of those that log, so that what the callback adds is logged by them.

    Args:
        options: of `ray_gossip.join`, such as `initial_peers`, for a script that no driver has started.

    Raises:
        UserError: it uses several devices, or is prepared already, or there are fewer samples than peers.
    """
    check_one_device(max(trainer.args.world_size, trainer.args.n_gpu), "start it in one process with one GPU")
    if any(isinstance(callback, GossipCallback) for callback in trainer.callback_handler.callbacks):
        raise UserError("this trainer has a GossipCallback already: prepare it once, and leave the callback out")
    if trainer.train_dataset is not None:
        trainer.train_dataset = shard_of(trainer.train_dataset)
    folder = own_folder()
    if folder is not None:
        trainer.args.output_dir = str(Path(trainer.args.output_dir) / folder)
    trainer.callback_handler.callbacks.insert(0, GossipCallback(**options))
    return trainer


class GossipCallback(TrainerCallback):
    """Joins the swarm when training begins, with the model on its device and the optimizer made; counts the optimizer's
    steps, so that accumulated batches are one, and steps that a gradient scaler skips are none; takes the final average
    when training ends. What the trainer logs is reported; callbacks behind this one log `gossip/peers`,
    `gossip/megabytes_sent` and `gossip/rounds_…`, too.

    Args:
        options: of `ray_gossip.join`.
    """

    def __init__(self, **options: Any) -> None:
        self._membership = Membership(options, how_to_deal="prepare_trainer(trainer)")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        check_one_device(max(args.world_size, args.n_gpu), "start it in one process with one GPU")
        optimizer = kwargs["optimizer"]
        # of accelerate's: it wraps the one whose steps they are
        self._membership.begin(kwargs["model"], getattr(optimizer, "optimizer", optimizer))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._membership.saw(args.train_batch_size)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._membership.saw(args.train_batch_size)  # a last batch that is smaller counts as a whole one

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None:
            logs.update(self._membership.report({name: logs[name] for name in logs if not name.endswith(_OF_MACHINE)}))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._membership.end(agree=True)
