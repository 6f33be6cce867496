"""TRL's SFTTrainer with videos: python -m quickprefill.run examples/integrations/trl_sft.py CHECKPOINT QUESTIONS"""

import json
import sys

from datasets import Dataset
from training import Collator, conversations
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

checkpoint, questions = sys.argv[1:]
processor, model = AutoProcessor.from_pretrained(checkpoint), AutoModelForImageTextToText.from_pretrained(checkpoint)
rows = Dataset.from_list([{"conversation": json.dumps(conversation)} for conversation in conversations(questions)])
options = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-4, "use_cpu": True, "seed": 0}
arguments = SFTConfig(
    ".cache/sft",
    remove_unused_columns=False,
    dataset_kwargs={"skip_prepare_dataset": True},
    logging_steps=1,
    report_to=[],
    bf16=False,
    **options,
)
collator = Collator(processor)
trainer = SFTTrainer(model, arguments, train_dataset=rows, data_collator=collator, processing_class=processor)
trainer.train()
print("LOSSES", [step["loss"] for step in trainer.state.log_history if "loss" in step])
