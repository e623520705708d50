"""A callback for PyTorch Lightning that keeps its checkpoints in a bucket, and a training that uses it."""

from pathlib import Path

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from gpuyard.cloud_sync import get_cloud_sync_from_env


class KeepInBucket(Callback):
    """Publishes the folder of the checkpoints between epochs, and at the end with the logs."""

    def __init__(self, folder: str, name: str, logs: str) -> None:
        self.folder, self.name, self.logs = folder, name, logs
        self.sync = get_cloud_sync_from_env()

    # Lightning saves after all callbacks have seen an epoch's end, so this is the first moment with its checkpoint.
    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            self.sync.sync_checkpoints(self.folder, self.name, keep_last=3)

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            self.sync.sync_checkpoints(self.folder, self.name, keep_last=3)
            self.sync.sync_logs(self.logs, self.name)


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = (self.layer(batch[0]) - batch[0].sum(dim=1, keepdim=True)).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main() -> None:
    get_cloud_sync_from_env().download_checkpoints("lightning", "checkpoints")
    save = ModelCheckpoint("checkpoints", save_last=True, every_n_epochs=1)
    logs = Path("runs")
    logs.mkdir(exist_ok=True)
    trainer = lightning.Trainer(
        max_epochs=3,
        default_root_dir=logs,
        callbacks=[save, KeepInBucket("checkpoints", "lightning", str(logs))],
    )
    last = Path("checkpoints/last.ckpt")
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(256, 8)), batch_size=32)
    trainer.fit(Regression(), data, ckpt_path=last if last.exists() else None)


if __name__ == "__main__":
    main()
