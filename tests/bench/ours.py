"Our training step for the side-by-side benchmark: what `sae_notebooks.train` runs for each batch, with its defaults."
import torch
from base import Adapter

import sae_notebooks
from sae_notebooks.saes.base import make_sae
from sae_notebooks.training.loop import Run, TrainConfig, train_step


class TopK(Adapter):
    name,arch = 'ours_topk','topk'
    def version(self): return f'sae_notebooks {sae_notebooks.__version__}'
    def build(self, cfg):
        self.cfg,self.run = cfg,None
        self.sae = make_sae(self.arch, d_in=cfg['d_in'], d_sae=cfg['d_sae'], k=cfg['k'], seed=cfg['seed'])
    def step(self, x):
        if self.run is None: # as train does: start in the middle of the data; here the first batch is all there is to see
            self.run = Run(x, self.sae, TrainConfig(steps=10**6, lr=self.cfg['lr'], warmup=0, decay=0., scale=False, clip=1e9, dead_after=10_000_000)) # the data have 65,536 rows: nothing can be dead within these steps
        train_step(self.run, x)
    @torch.no_grad()
    def recon(self, x): return self.sae.decode(self.sae.train_codes(x))


class BatchTopK(TopK): name,kind,arch = 'ours_batchtopk','batchtopk','batchtopk'
ADAPTERS = [TopK, BatchTopK]
