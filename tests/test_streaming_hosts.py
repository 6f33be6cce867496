"""register(stream=True) through processors that hold Qwen2-VL's video processor under a name of their own."""

import pytest
import torch
from qwen_vl_utils import process_vision_info

import quickdecode
from quickdecode.lazy.tensor import LazyTensor
from tests.processors import omni


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_omni(make_clip):
    video = {"type": "video", "video": str(make_clip("omni.mp4", frames=48)), "fps": 8.0}
    video |= {"resized_height": 56, "resized_width": 84}
    rows = {}
    for stream in (False, True):
        quickdecode.register(stream=stream)
        try:
            _, videos = process_vision_info([{"role": "user", "content": [video]}])
            inputs = omni(do_resize=False)(
                text=["<|vision_bos|><|VIDEO|><|vision_eos|>"], videos=videos, return_tensors="pt"
            )
            pixels = inputs["pixel_values_videos"]
            assert isinstance(pixels, LazyTensor) is stream
            rows[stream] = pixels.rows(0, len(pixels)) if stream else pixels
        finally:
            quickdecode.unregister()
    assert torch.equal(rows[True], rows[False])
