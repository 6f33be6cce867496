# accelerate starts children of its own; the hook reaches them. On CPUs, with the examples here (with --cpu in the place of
# --multi_gpu accelerate starts one process, whatever --num_processes says):
python -m quickprefill.hook on
QUICKPREFILL='{"keep": 1}' accelerate launch --multi_gpu --num_processes 2 examples/integrations/hf_trainer.py CHECKPOINT QUESTIONS
python -m quickprefill.hook off
