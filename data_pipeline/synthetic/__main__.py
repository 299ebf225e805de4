"""`python -m data_pipeline.synthetic --out DIR` writes a synthetic driving set."""

from data_pipeline.synthetic.dataset import main

if __name__ == "__main__":
    raise SystemExit(main())
