"""What a camera and a view are; later also the models that make views of one picture.

The ground floor: nothing here imports ``lrm``, ``trilift``, ``train`` or ``demo``.
"""
