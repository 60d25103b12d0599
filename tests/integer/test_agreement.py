from __future__ import annotations

from integer_cases import KINDS, network, pictures

from fewbit.integer.agreement import agreement
from fewbit.integer.fixed import FixedPoint


def test_integer_arithmetic_agrees_with_itself_and_a_wrong_code_is_found() -> None:
    for kind in KINDS:
        found = network(kind)
        values = FixedPoint(found, "single").values(pictures(2))
        codes = {name: values[name] for name in found.affine}
        rows = agreement(found, codes)
        assert {row.layer for row in rows} >= {node.layer for node in found.layers() if node.name in found.affine}
        assert all(row.different == 0 for row in rows)
        name = rows[0].name
        changed = codes[name].flatten()
        changed[5] ^= 4
        codes[name] = changed.reshape(codes[name].shape)
        first = agreement(found, codes)[0]
        assert (first.different, first.largest) == (1, 4)
