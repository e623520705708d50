"""A callback for the Trainer of Hugging Face that keeps its checkpoints in a bucket, and a training that uses it."""

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from gpuyard.cloud_sync import get_cloud_sync_from_env


class KeepInBucket(TrainerCallback):
    """Publishes the output folder whenever the Trainer has saved, and at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sync = get_cloud_sync_from_env()

    def on_save(self, args: TrainingArguments, state, control, **others) -> None:
        if state.is_world_process_zero:
            self.sync.sync_checkpoints(args.output_dir, self.name, keep_last=3)

    on_train_end = on_save


class Regression(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def forward(self, inputs: torch.Tensor) -> dict:
        output = self.layer(inputs)
        return {"loss": (output - inputs.sum(dim=1, keepdim=True)).pow(2).mean(), "logits": output}


def main() -> None:
    get_cloud_sync_from_env().download_checkpoints("trainer", "checkpoints")
    arguments = TrainingArguments(
        "checkpoints",
        max_steps=40,
        save_steps=10,
        save_total_limit=2,
        per_device_train_batch_size=32,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    torch.manual_seed(0)
    rows = [{"inputs": row} for row in torch.randn(256, 8)]
    trainer = Trainer(Regression(), arguments, train_dataset=rows, callbacks=[KeepInBucket("trainer")])
    trainer.train(resume_from_checkpoint=get_last_checkpoint("checkpoints"))


if __name__ == "__main__":
    main()
