# In a checkout of VLMEvalKit; it needs a GPU and flash-attn, so this was not run here.
python -m quickprefill.run --keep 0.5 --group-frames 16 run.py --data Video-MME_64frame --model Qwen2.5-VL-7B-Instruct-ForVideo
