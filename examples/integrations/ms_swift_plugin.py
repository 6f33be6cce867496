"""For `swift infer --external_plugins examples/integrations/ms_swift_plugin.py`, as also for `swift sft`: nothing else.

Options come from the environment: QUICKPREFILL='{"keep": 0.5}' QUICKDECODE_STREAM=1.
"""

import quickprefill.auto  # noqa: F401
