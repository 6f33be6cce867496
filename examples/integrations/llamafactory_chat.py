"""LLaMA-Factory's ChatModel.

python -m quickprefill.run examples/integrations/llamafactory_chat.py CHECKPOINT QUESTIONS
"""

import json
import sys
from pathlib import Path

from llamafactory.chat import ChatModel

checkpoint, questions = sys.argv[1:]
options = {"template": "qwen2_vl", "infer_dtype": "float32", "default_system": "", "max_new_tokens": 4}
video = {"video_fps": 2.0, "video_maxlen": 64, "video_max_pixels": 3136, "video_min_pixels": 3136}
model = ChatModel({"model_name_or_path": checkpoint, "do_sample": False, **options, **video})
for line in Path(questions).read_text().splitlines()[:6]:
    asked = json.loads(line)
    message = {"role": "user", "content": "<video>" + asked["question"]}
    print("ANSWER", model.chat([message], videos=[asked["video"]])[0].response_text.strip())
