"What most commands import, before they are forked"
from sae_notebooks.core.compat import import_torchvision
import_torchvision()
import open_clip, pandas, torch, transformers
import sae_notebooks.dev.cli
from sae_notebooks.acts import extract
from sae_notebooks.core import synthetic
from sae_notebooks.metrics import measure
from sae_notebooks.models import load
from sae_notebooks.training import loop
