"""What nearly every page imports: imported once by `run.py`, whose processes for pages are forked from there. Only what no page has to import in an order of its
own: a page that takes transformers before torchvision is seen to must fail here as it fails in Jupyter."""
import IPython, matplotlib.pyplot, nbdev.test, pandas, torch
