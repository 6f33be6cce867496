"""TRL's GRPOTrainer with videos: python -m quickprefill.run examples/integrations/trl_grpo.py CHECKPOINT QUESTIONS

TRL 1.16 generates from whatever the processor makes of a prompt, so with its video, but scores with the fields of
images only. The class below hands the video to the scoring passes too; they have labels, so they are the stock model's.
"""

import json
import sys

from datasets import Dataset
from training import conversations
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer


class WithVideos(GRPOTrainer):
    """For one generation batch a step, whose rows stay together."""

    def _tokenize_prompts(self, *given, **options):
        ids, images, self.fields = super()._tokenize_prompts(*given, **options)
        return ids, images, self.fields

    def _get_per_token_logps_and_entropies(self, model, input_ids, *given, **options):
        videos = {name: value for name, value in self.fields.items() if "video" in name or "grid" in name}
        types = 2 * (input_ids == self._video_pad_token_id).int()

        def scored(**call):
            return model(**call, **videos, mm_token_type_ids=types)

        return super()._get_per_token_logps_and_entropies(scored, input_ids, *given, **options)


def reward(completions, answer, **_):
    """How much of the answer was found; says what was sampled."""
    texts = [completion[0]["content"].strip() for completion in completions]
    print("\n".join(f"ANSWER {text}" for text in texts))
    return [float(text == right) - len(text) / 100 for text, right in zip(texts, answer, strict=True)]


def decoded(batch):
    """Rows as they were: Arrow would give each part of a message the fields of all the others."""
    rows = [json.loads(row) for row in batch["row"]]
    return {name: [row[name] for row in rows] for name in ("prompt", "answer")}


checkpoint, questions = sys.argv[1:]
processor, model = AutoProcessor.from_pretrained(checkpoint), AutoModelForImageTextToText.from_pretrained(checkpoint)
rows = [{"prompt": [asked], "answer": told["content"][0]["text"]} for asked, told in conversations(questions)]
rows = Dataset.from_list([{"row": json.dumps(row)} for row in rows]).with_transform(decoded)
sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 4, "max_steps": 2}
sampled = {"temperature": 6.0, "beta": 0.1}
options = {"learning_rate": 1e-4, "use_cpu": True, "bf16": False, "seed": 0, "logging_steps": 1}
arguments = GRPOConfig(".cache/grpo", remove_unused_columns=False, report_to=[], **sizes, **sampled, **options)
trainer = WithVideos(model, reward, arguments, train_dataset=rows, processing_class=processor)
trainer.train()
log = [step for step in trainer.state.log_history if "loss" in step]
print("LOSSES", [step[name] for step in log for name in ("loss", "kl", "grad_norm")])
