"What most pages import: imported once by `run.py`, whose processes for pages are forked from there"
import IPython, matplotlib.pyplot, nbdev.test, pandas, scipy.stats, sklearn.linear_model, torch, torch.nn.functional
from sae_notebooks.core.compat import import_torchvision
import_torchvision()
import transformers.models.auto.modeling_auto, transformers.models.clip.modeling_clip, transformers.models.llama.modeling_llama
