"""The host models, one file each. A new one costs a file and a line in FAMILIES."""

from quickprefill.hosts.base import Host
from quickprefill.hosts.glm import GLM_4_1V, GLM_4_5V, GLM_4_6V
from quickprefill.hosts.internvl import InternVL
from quickprefill.hosts.llava_next_video import LlavaNextVideo
from quickprefill.hosts.llava_onevision import LlavaOnevision
from quickprefill.hosts.qwen2_5_omni import Qwen2_5_Omni
from quickprefill.hosts.qwen2_5_vl import Qwen2_5_VL
from quickprefill.hosts.qwen2_vl import Qwen2_VL
from quickprefill.hosts.qwen3_5 import Qwen3_5, Qwen3_5_MoE
from quickprefill.hosts.qwen3_vl import Qwen3_VL, Qwen3_VL_MoE
from quickprefill.hosts.smolvlm import SmolVLM
from quickprefill.hosts.video_llama_3 import VideoLLaMA3

__all__ = ["FAMILIES", "Host"]

FAMILIES: dict[str, Host] = {
    "glm46v": GLM_4_6V(),
    "glm4v": GLM_4_1V(),
    "glm4v_moe": GLM_4_5V(),
    "internvl": InternVL(),
    "llava_next_video": LlavaNextVideo(),
    "llava_onevision": LlavaOnevision(),
    "qwen2_5_omni_thinker": Qwen2_5_Omni(),
    "qwen2_5_vl": Qwen2_5_VL(),
    "qwen2_vl": Qwen2_VL(),
    "qwen3_5": Qwen3_5(),
    "qwen3_5_moe": Qwen3_5_MoE(),
    "qwen3_vl": Qwen3_VL(),
    "qwen3_vl_moe": Qwen3_VL_MoE(),
    "smolvlm": SmolVLM(),
    "video_llama_3": VideoLLaMA3(),
}
"""Every supported host by its `config.model_type`."""
