"""kvpress for a text model and quickprefill for a video model in one process.

python -m quickprefill.run examples/integrations/kvpress_side_by_side.py CHECKPOINT VIDEO
"""

import sys

import torch
from kvpress import KnormPress
from transformers import Qwen2Config, Qwen2ForCausalLM, pipeline

checkpoint, video = sys.argv[1:]
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
text = Qwen2ForCausalLM(
    Qwen2Config(vocab_size=200, num_attention_heads=4, num_key_value_heads=2, eos_token_id=None, **sizes)
).eval()
ids = torch.arange(100)[None]
content = [{"type": "video", "path": video}, {"type": "text", "text": "What colour was the square?"}]
pipe = pipeline("image-text-to-text", model=checkpoint, device="cpu")
for _ in range(2):
    with torch.no_grad(), KnormPress(0.5)(text):
        stored = text(ids).past_key_values.layers[0].keys.shape[2]
    answer = pipe(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    print("ANSWER", answer[0]["generated_text"].strip(), stored)
