"""The policies, one file each. A new one costs a file and a line in POLICIES."""

from quickprefill.policies.base import Compressor, Policy, Scorer, Selector
from quickprefill.policies.cubes import Cubes
from quickprefill.policies.key_norm import KeyNorm
from quickprefill.policies.key_norm_distinct import KeyNormDistinct
from quickprefill.policies.key_norm_random import KeyNormRandom
from quickprefill.policies.key_weighted_value_norm import KeyWeightedValueNorm
from quickprefill.policies.output_norm import OutputNorm
from quickprefill.policies.prunevid import PruneVid
from quickprefill.policies.query_attention import QueryAttention
from quickprefill.policies.random import Random
from quickprefill.policies.seen import GroupAttention, GroupKV
from quickprefill.policies.uniform import Uniform
from quickprefill.policies.value_norm import ValueNorm
from quickprefill.policies.vidcom2 import VidCom2
from quickprefill.prompt.tokens import VideoTokens

__all__ = [
    "POLICIES",
    "Compressor",
    "Cubes",
    "GroupAttention",
    "GroupKV",
    "KeyNorm",
    "KeyNormDistinct",
    "KeyNormRandom",
    "KeyWeightedValueNorm",
    "OutputNorm",
    "Policy",
    "PruneVid",
    "QueryAttention",
    "Random",
    "Scorer",
    "Selector",
    "Uniform",
    "ValueNorm",
    "VidCom2",
    "VideoTokens",
]

POLICIES: dict[str, type[Policy]] = {
    "cubes": Cubes,
    "key_norm": KeyNorm,
    "key_norm_distinct": KeyNormDistinct,
    "key_norm_random": KeyNormRandom,
    "key_weighted_value_norm": KeyWeightedValueNorm,
    "output_norm": OutputNorm,
    "prunevid": PruneVid,
    "query_attention": QueryAttention,
    "random": Random,
    "uniform": Uniform,
    "value_norm": ValueNorm,
    "vidcom2": VidCom2,
}
"""Every policy by name. Add your own class here to name it in a config or in JSON."""
