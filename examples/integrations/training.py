"""What the training examples share: questions about videos as batches of a stock processor, read by qwen-vl-utils."""

import json
from pathlib import Path

from qwen_vl_utils import process_vision_info


def conversations(file):
    """Questions, as of examples/integrations/lmms_eval/make_clips.py, in the form that chat templates take."""
    for line in Path(file).read_text().splitlines():
        asked = json.loads(line)
        video = {"type": "video", "video": asked["video"], "nframes": 32, "max_pixels": 3136, "min_pixels": 3136}
        user = {"role": "user", "content": [video, {"type": "text", "text": asked["question"]}]}
        yield [user, {"role": "assistant", "content": [{"type": "text", "text": asked["answer"]}]}]


class Collator:
    """Conversations -> input_ids, pixels and labels."""

    def __init__(self, processor, *, answers=True):
        self.processor, self.answers = processor, answers

    def __call__(self, rows):
        messages = [json.loads(row["conversation"])[: None if self.answers else 1] for row in rows]
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=not self.answers)
        _, videos, options = process_vision_info(messages, return_video_kwargs=True, return_video_metadata=True)
        videos, metadata = map(list, zip(*videos, strict=True))
        batch = self.processor(
            text=text, videos=videos, video_metadata=metadata, padding=True, return_tensors="pt", **options
        )
        if self.answers:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch
