"""DeepSpeed's settings for a training: how state is sharded, how workers exchange gradients.

After every forward pass, ZeRO 2 and 3 reduce the gradients, in the weights' own precision, to the
worker that holds their share. There they are added to those of the earlier passes of the update.
"""

from typing import Any

from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.models.memory import BUCKET, SHARDED_GRADIENTS, sums_in_fp32


def engine_settings(config: DDPOConfig, *, trained: int) -> dict[str, Any]:
    """Return the configuration of `deepspeed.initialize` for a model with `trained` parameters to
    train.

    In bf16, the gradients of an update's forward passes are added up in fp32. A sum in bf16, which
    is DeepSpeed's default, has 8 bits: it loses a gradient that is 512 times smaller than the sum.
    At ZeRO 0 DeepSpeed cannot add up in fp32. At ZeRO 1 it would use another optimizer, whose
    checkpoints cannot be resharded. There, sums stay in bf16.
    """
    optim, scale = config.optim, config.scale
    is_bf16 = config.model.dtype == "bf16"
    # DeepSpeed's stage 0 in fp32 neither detects nor skips a non-finite gradient. Stage 1 does,
    # and computes the same.
    stage = 1 if scale.zero_stage == 0 and not is_bf16 else scale.zero_stage
    zero: dict[str, Any] = {
        "stage": stage,
        # It replaces torch's linear layers in stage 3. It adds the bias after rounding to bf16, and
        # the policy would not be the reference.
        "memory_efficient_linear": False,
        # Gradients of the last layers travel while those of the first are computed. Below stage 2
        # there is one exchange an update, after its last pass.
        "overlap_comm": stage >= SHARDED_GRADIENTS,
        "reduce_bucket_size": min(BUCKET, trained),  # DeepSpeed allocates all of it
    }
    if scale.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if scale.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    settings = {
        "train_batch_size": optim.batch,
        "train_micro_batch_size_per_gpu": scale.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": optim.clip,
        "bf16": {"enabled": is_bf16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if sums_in_fp32(config):
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
