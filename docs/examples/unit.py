def tool(query: str) -> str:
    """`3 km in m` gives `3000 m`."""
    number, unit, _, wanted = query.split()
    metres = {"mm": 0.001, "m": 1, "km": 1000}
    return f"{float(number) * metres[unit] / metres[wanted]:g} {wanted}"
