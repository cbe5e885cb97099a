"""Views → field → mesh: reconstruction models, the triplane field, volume rendering, meshing.

May import ``multiview``; never ``trilift``, ``train`` or ``demo``.
"""
