"""pipeline("image-text-to-text") or pipeline("any-to-any") with the path of a video.

python -m quickprefill.run --keep 0.5 examples/integrations/pipeline.py CHECKPOINT VIDEO TASK QUESTION...
"""

import sys

from transformers import pipeline

checkpoint, video, task, *questions = sys.argv[1:]
pipe = pipeline(task, model=checkpoint, device="cpu")
for question in questions:
    content = [{"type": "video", "path": video}, {"type": "text", "text": question}]
    answer = pipe(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    print("ANSWER", answer[0]["generated_text"].strip())
