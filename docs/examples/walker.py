import random


def walk(completions: list[str], **columns: list[object]) -> list[list[float]]:
    """A subgoal is a cell from 0 to 9; a walker at cell 4 that stumbles tries twice to come nearer to cell 9."""
    rows = []
    for text in completions:
        cell = text[:1]
        if not cell.isdecimal() or not cell.isascii():
            rows.append([0.0, 0.0, 0.0, 0.0])
            continue
        draw = random.Random(cell)
        tries = [float(int(cell) > 4 and draw.random() < 0.8) for _ in range(2)]
        rows.append([1.0, int(cell) / 9, *tries])
    return rows
