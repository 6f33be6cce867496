"""The Trainer of transformers, then generate().

    python -m quickprefill.run examples/integrations/hf_trainer.py CHECKPOINT QUESTIONS

A training step is the stock model's, whatever is patched; only generate() prefills by groups.
"""

import json
import sys

from training import Collator, conversations
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

checkpoint, questions = sys.argv[1:]
processor, model = AutoProcessor.from_pretrained(checkpoint), AutoModelForImageTextToText.from_pretrained(checkpoint)
rows = [{"conversation": json.dumps(conversation)} for conversation in conversations(questions)]
options = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-4, "use_cpu": True, "seed": 0}
arguments = TrainingArguments(".cache/trainer", remove_unused_columns=False, logging_steps=1, report_to=[], **options)
trainer = Trainer(model, arguments, train_dataset=rows, data_collator=Collator(processor))
trainer.train()
print("LOSSES", [step["loss"] for step in trainer.state.log_history if "loss" in step])
model.eval()
for row in rows[:6]:
    inputs = Collator(processor, answers=False)([row])
    output = model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    print("ANSWER", processor.batch_decode(output, skip_special_tokens=True)[0].strip())
