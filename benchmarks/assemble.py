"""Join the sections in `benchmarks/results/` to `benchmarks/results.md`, and print it.

python benchmarks/assemble.py
"""

from pathlib import Path

HEADER = """# Benchmark results

`make bench` measures and writes this page; each section stands in `benchmarks/results/`. Ratios
compare with a peer or a limit timed in the same run: they carry over to other machines, seconds
do not.
"""


def main() -> None:
    folder = Path(__file__).parent / "results"
    sections = [path.read_text().strip() for path in sorted(folder.glob("*.md"))]
    text = "\n\n".join([HEADER.strip(), *sections]) + "\n"
    folder.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
