# accelerate starts children of its own; the hook reaches them. On CPUs, with the examples here:
python -m quickprefill.hook on
QUICKPREFILL='{"keep": 1}' accelerate launch --cpu --num_processes 2 examples/integrations/hf_trainer.py CHECKPOINT QUESTIONS
python -m quickprefill.hook off
