"""Philox, the counter-based generator of random masks, as the text of a compiled loop: the words of numpy.random.Philox."""

from __future__ import annotations

LANES = 8  # groups of words a turn; a group is one counter's four words of 64 bits
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
TIMES = (0xD2E7470EE14C6C93, 0xCA5A826395121157)


def philox() -> str:
    """Philox-4x64-10 (Salmon et al. 2011) as numpy.random.Philox runs it: the counter is raised before each group."""
    n = LANES
    lanes, low = f"<{n} x i64>", "<" + ", ".join([f"i64 {2**32 - 1}"] * n) + ">"
    keys = [["%key0", "%key1"]]
    lines = ["define void @philox(i64 %first, i64 %turns, ptr noalias %out, i64 %key0, i64 %key1) {", "entry:"]

    def emit(text: str) -> str:
        name = f"%v{len(lines)}"
        lines.append(f"  {name} = {text}")
        return name

    def splat(value: int) -> str:
        return "<" + ", ".join([f"i64 {value}"] * n) + ">"

    def spread(scalar: str) -> str:
        one = emit(f"insertelement {lanes} poison, i64 {scalar}, i64 0")
        return emit(f"shufflevector {lanes} {one}, {lanes} poison, <{n} x i32> zeroinitializer")

    def both(op: str, a: str, b: str) -> str:
        return emit(f"{op} {lanes} {a}, {b}")

    def product(x: str, by: int) -> tuple[str, str]:
        """High and low half of 64 times 64 bits, by halves: processors multiply 32 bits in many lanes at once."""
        a, b = splat(by % 2**32), splat(by >> 32)
        x0, x1 = both("and", x, low), both("lshr", x, splat(32))
        p00, p01, p10, p11 = both("mul", x0, a), both("mul", x0, b), both("mul", x1, a), both("mul", x1, b)
        t = both("add", p10, both("lshr", p00, splat(32)))
        u = both("add", p01, both("and", t, low))
        high = both("add", both("add", p11, both("lshr", t, splat(32))), both("lshr", u, splat(32)))
        return high, both("or", both("shl", u, splat(32)), both("and", p00, low))

    for _ in range(9):
        keys.append([emit(f"add i64 {k}, {w}") for k, w in zip(keys[-1], WEYL, strict=True)])
    wide = [[spread(k) for k in pair] for pair in keys]
    lines += ["  br label %head", "head:", "  %i = phi i64 [ 0, %entry ], [ %next, %body ]"]
    lines += ["  %more = icmp ult i64 %i, %turns", "  br i1 %more, label %body, label %done", "body:"]
    begin = emit(f"add i64 %first, {emit(f'mul i64 %i, {n}')}")
    steps = "<" + ", ".join(f"i64 {j + 1}" for j in range(n)) + ">"
    c = [both("add", spread(begin), steps), *["zeroinitializer"] * 3]
    for key in wide:
        (h0, l0), (h1, l1) = product(c[0], TIMES[0]), product(c[2], TIMES[1])
        c = [both("xor", both("xor", h1, c[1]), key[0]), l1, both("xor", both("xor", h0, c[3]), key[1]), l0]
    pairs = ", ".join(f"i32 {j}" for j in range(2 * n))
    halves = [
        emit(f"shufflevector {lanes} {c[j]}, {lanes} {c[j + 1]}, <{2 * n} x i32> <{pairs}>") for j in (0, 2)
    ]  # the four words of all groups, one after another, in two halves
    order = ", ".join(f"i32 {w * n + g}" for g in range(n) for w in range(4))  # group by group
    double, whole = f"<{2 * n} x i64>", f"<{4 * n} x i64>"
    words = emit(f"shufflevector {double} {halves[0]}, {double} {halves[1]}, <{4 * n} x i32> <{order}>")
    at = emit(f"getelementptr i64, ptr %out, i64 {emit(f'mul i64 %i, {4 * n}')}")
    lines += [f"  store {whole} {words}, ptr {at}, align 1", "  %next = add i64 %i, 1", "  br label %head"]
    return "\n".join([*lines, "done:", "  ret void", "}", ""])
