"""What other programs put around a model's forward(): each kind says how it is put on, taken off and noticed."""

import functools

import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.state import AcceleratorState


class Hook:
    """accelerate's hook, as device_map and offloading put it on."""

    def __init__(self):
        self.calls = 0

    def wrap(self, model):
        outer = self

        class Count(ModelHook):
            def pre_forward(self, module, *args, **kwargs):
                outer.calls += 1
                return args, kwargs

        add_hook_to_module(model, Count())

    def unwrap(self, model):
        remove_hook_from_module(model)

    def close(self):
        pass


class Closure:
    """A function that keeps the forward() it found, as TRL's trainers do."""

    def __init__(self):
        self.calls = 0

    def wrap(self, model):
        self.inner = inner = model.forward

        @functools.wraps(inner)
        def forward(*args, **kwargs):
            self.calls += 1
            return inner(*args, **kwargs)

        model.forward = forward

    def unwrap(self, model):
        model.forward = self.inner

    def close(self):
        pass


class Prepared:
    """Accelerator.prepare() with mixed precision: a call in which the first decoder layer always ran under autocast."""

    def __init__(self):
        self.calls = 0
        self.close()  # the precision is one for the whole process, and another test may have set it
        self.accelerator = Accelerator(cpu=True, mixed_precision="bf16")

    def wrap(self, model):
        autocast = []

        def layer_done(*_):
            autocast.append(torch.is_autocast_enabled("cpu"))

        def call_done(*_):
            self.calls += all(autocast)
            autocast.clear()

        self.accelerator.prepare(model)
        layer = model.model.language_model.layers[0]
        self.handles = [layer.register_forward_hook(layer_done), model.lm_head.register_forward_hook(call_done)]

    def unwrap(self, model):
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        for handle in self.handles:
            handle.remove()

    def close(self):
        AcceleratorState._reset_state(reset_partial_state=True)


KINDS = {"accelerate hook": Hook, "closure": Closure, "mixed precision": Prepared}
