"""ONNX models as graphs: reading, simplifying, where quantizers go, calibrating, writing.

A model is an ``onnx_ir.Model`` from end to end. One file a step, in the order of the work::

    file ─▶ upgrade ─▶ simplify (fold) ─▶ layers, placement (targets) ─▶ observe ─▶ ranges ─▶ qdq │ dynamic │ nbits

:mod:`.placement` is the one place that knows which tensors carry codes, :mod:`.targets` what each runtime fuses.
It needs the extra ``onnx``.
"""
