"""`import quickprefill.auto` patches video models and registers the reader, as the environment says (settings.py).

For programs that can import a module but not call a function of it: a flag for plugins, a `.pth` file.
"""

from quickprefill.activation import activate
from quickprefill.settings import Settings

activate(Settings.from_environment())
