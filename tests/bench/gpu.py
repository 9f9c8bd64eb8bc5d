"""What a GPU is good for here, in one file: `make gpu`, or with any Python that has a CUDA torch and what the package imports

    python tests/bench/gpu.py [--out FILE] [--seconds 540] [--device cuda|cpu] [--toy]

Every figure stands beside a reference timed in the same run: dense PyTorch, a plain matrix product and a copy, the bare model, the CPU. Without a GPU it
walks through at toy size, which checks that it runs and says nothing of speed. Parts that the time does not reach are named, not left out in silence.
"""
import argparse, contextlib, json, platform, re, sys, tempfile, time, traceback
from pathlib import Path

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root))
import torch
from torch import nn

RESULT = root/'tests'/'bench'/'results'/'gpu.json'

class Bench:
    "Where things run, how large they are, and how much time is left"
    def __init__(self, device, toy, seconds): self.device,self.toy,self.end = device,toy,time.monotonic()+seconds
    @property
    def left(self): return self.end-time.monotonic()
    def sync(self):
        if self.device=='cuda': torch.cuda.synchronize()
    def time_of(self, f, n=None, warm=3):
        "Seconds of a call: the median of three blocks"
        n = n or (2 if self.toy else 20)
        for i in range(1 if self.toy else warm): f(i)
        blocks = []
        for _ in range(3):
            self.sync(); t = time.perf_counter()
            for i in range(n): f(i)
            self.sync(); blocks.append((time.perf_counter()-t)/n)
        return sorted(blocks)[1]

def machine(b):
    "Measured rates: a bfloat16 matrix product and a copy"
    m = 256 if b.toy else 8192
    x,y = (torch.randn(m, m, device=b.device, dtype=torch.bfloat16) for _ in range(2))
    gemm = 2*m**3/b.time_of(lambda i: x@y)
    big = torch.empty(2**(16 if b.toy else 28), device=b.device)
    name = torch.cuda.get_device_name() if b.device=='cuda' else platform.machine()
    return dict(name=name, torch=torch.__version__, gemm_tflops=gemm/1e12, copy_gb_s=2*big.nbytes/b.time_of(lambda i: big.add_(0))/1e9)

SIZES = dict(clip=(768,6144,32,4096), vision_language=(1024,65536,20,4096)) # d_in, d_sae, k, batch; the second is the paper's
TOY = dict(toy=(32,256,4,64))

def dense_step(sae, x, n):
    "The step one writes in an afternoon: full codes, autograd through them"
    opt = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)
    def step(i):
        b = x[i%4*n:(i%4+1)*n]
        with torch.autocast(x.device.type, torch.bfloat16): recons = sae.activate(sae.pre_acts(b))@sae.W_dec+sae.b_dec
        loss = (recons-b).square().sum(1).mean()
        opt.zero_grad(); loss.backward(); opt.step()
    return step

def training(b, said):
    "A step of ours, as a fraction of the floor that matrix products and copies leave, and beside dense PyTorch"
    from sae_notebooks.saes.base import make_sae
    from sae_notebooks.training.loop import Run, TrainConfig, train_step
    out = {}
    for name,(d,m,k,n) in (TOY if b.toy else SIZES).items():
        x = torch.randn(4*n, d, device=b.device)
        for arch in ('topk','batchtopk'):
            run = Run(x.cpu(), make_sae(arch, d_in=d, d_sae=m, k=k), TrainConfig(steps=10**6, lr=1e-4, precision='bfloat16'), b.device)
            ours = b.time_of(lambda i: train_step(run, x[i%4*n:(i%4+1)*n]))
            theirs = b.time_of(dense_step(make_sae(arch, d_in=d, d_sae=m, k=k).to(b.device), x, n), 2 if b.toy else 8)
            floor = 2*n*d*m/(said['gemm_tflops']*1e12)+(4*n*m+16*n*k*d+56*m*d)/(said['copy_gb_s']*1e9)
            out[f'{name} {arch}'] = dict(d_in=d, d_sae=m, k=k, batch=n, ms=1e3*ours, rows_per_s=n/ours, of_the_floor=floor/ours,
                                         times_dense=theirs/ours)
            del run
        if b.device=='cuda': out[f'{name} topk']['peak_gb'] = torch.cuda.max_memory_allocated()/1e9; torch.cuda.reset_peak_memory_stats()
    return out

def sparsify(b, said):
    "A step of sparsify, with its own kernels, where it is installed"
    try: from sparsify import SparseCoder, SparseCoderConfig
    except ImportError: return dict(skipped='sparsify is not installed here')
    out = {}
    for name,(d,m,k,n) in (TOY if b.toy else SIZES).items():
        x,net = torch.randn(4*n, d, device=b.device),SparseCoder(d, SparseCoderConfig(num_latents=m, k=k), device=b.device)
        opt = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
        def step(i): # the statements of its trainer
            net.set_decoder_norm_to_unit_norm()
            part = x[i%4*n:(i%4+1)*n]
            with torch.autocast(b.device, torch.bfloat16): loss = net(x=part, y=part, dead_mask=None).fvu
            loss.backward(); net.remove_gradient_parallel_to_decoder_directions(); opt.step(); opt.zero_grad()
        out[name] = dict(ms=1e3*b.time_of(step))
    return out

def scores(b, said):
    "MS in one pass, and FMS from a presorted table; both beside the CPU, and equal to it"
    from sae_notebooks.core.codes import Codes
    from sae_notebooks.metrics.fms import fms, presort
    from sae_notebooks.metrics.monosemanticity import MonosemanticityScore
    N,K,D,on = (200,64,16,4) if b.toy else (50_000,16_384,768,20)
    g = torch.Generator().manual_seed(0)
    idx = torch.randint(K//on, (N,on), generator=g)+torch.arange(on)*(K//on)
    codes = Codes(torch.arange(0, N*on+1, on), idx.flatten(), torch.rand(N*on, generator=g), K)
    emb = torch.randn(N, D, generator=g)
    def once(device):
        c,e,m = codes.to(device),emb.to(device),MonosemanticityScore(K,D).to(device)
        def one(i): m.reset(); m.update(c, e); return m.compute()
        return b.time_of(one, 1, 1),one(0).cpu().nan_to_num(9)
    (t,a),(t_cpu,c) = once(b.device),once('cpu')
    f = torch.rand(300 if b.toy else 5000, 32 if b.toy else 2048, generator=g)
    y = (f[:,3]+.1*torch.rand(len(f), generator=g)>.5).double()
    def grown(device): return fms(presort(f.to(device)), y, permutations=0, draws=0)
    t_fms,t_fms_cpu = b.time_of(lambda i: grown(b.device), 1, 1),b.time_of(lambda i: grown('cpu'), 1, 1)
    return dict(ms=dict(images=N, features=K, s=t, cpu_s=t_cpu, largest_difference=(a-c).abs().max().item()),
                fms=dict(rows=len(f), features=f.shape[1], s=t_fms, cpu_s=t_fms_cpu, same_feature=grown(b.device)['feature']==grown('cpu')['feature']))

def extraction(b, said):
    "All that extraction adds to a bare forward pass of a transformer of the size of ViT-B, random weights"
    from sae_notebooks import extract
    from sae_notebooks.models.backbone import Backbone, Batch
    d,layers,n = (32,1,32) if b.toy else (768,12,2048)
    class Tower(Backbone):
        point = 'layers.0' if b.toy else 'layers.11'
        def prepare(self, items): return Batch(dict(x=torch.stack(list(items)).flatten(1,2)))
        def forward(self, batch): return self.net(self.inputs(batch)['x'])
    layer = nn.TransformerEncoderLayer(d, 4 if b.toy else 12, 4*d, batch_first=True, dropout=0., norm_first=True)
    model = Tower(nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), 'tower', b.device)
    items = [torch.randn(3, 16, d) for _ in range(n)] # as pixels: 48 positions
    batches = [model.prepare(items[i:i+64]) for i in range(0, n, 64)]
    def bare(i):
        with torch.inference_mode():
            for batch in batches: model.forward(batch)
    def whole(i):
        with tempfile.TemporaryDirectory() as t: extract(model, items, f'{t}/x', rule='all', batch_size=64, progress=False)
    t_bare,t_whole = b.time_of(bare, 1, 1),b.time_of(whole, 1, 1)
    return dict(items=n, rows=n*48, bare_s=t_bare, extract_s=t_whole, of_bare=t_bare/t_whole, rows_per_s=n*48/t_whole)

def cuda_pages(folder=root/'nbs'):
    "Notebooks with a cell that is marked for a GPU"
    def marked(p): return any(c['cell_type']=='code' and re.match(r'#\|\s*cuda\b', ''.join(c['source'])) for c in json.loads(p.read_text('utf-8'))['cells'])
    return [p for p in sorted(Path(folder).rglob('*.ipynb')) if marked(p)]

def run_page(path):
    "Its code cells in order, with those for a GPU; magics, slow and network cells and exports are left out"
    space,cells = {'__name__':'page','display':lambda *a: None},json.loads(Path(path).read_text('utf-8'))['cells']
    for c in cells:
        source = ''.join(c['source'])
        if c['cell_type']!='code' or re.match(r'(#\|\s*(slow|network|eval: false)|%)', source): continue
        exec(compile(source, str(path), 'exec'), space)

def pages(b, said):
    "The pages of the documentation that have cells for a GPU, run with these"
    import os
    os.environ.setdefault('MPLBACKEND','agg')
    here,out = Path.cwd(),{}
    for p in cuda_pages():
        name = p.relative_to(root/'nbs').as_posix()
        if b.device!='cuda': out[name] = 'no GPU: not run'; continue
        if b.left<60: out[name] = 'no time left'; continue
        try:
            os.chdir(p.parent)
            with contextlib.redirect_stdout(None): run_page(p)
            out[name] = 'passed'
        except Exception as e: out[name] = f'{type(e).__name__}: {str(e)[:200]}'
        finally: os.chdir(here)
    return out

PARTS = dict(training=training, sparsify=sparsify, scores=scores, extraction=extraction, pages=pages)

def measure(device, toy, seconds):
    "All parts, as JSON holds them"
    b = Bench(device, toy, seconds)
    said = dict(device=device, toy=toy, machine=machine(b))
    for name,part in PARTS.items():
        if b.left<30: said[name] = dict(skipped='no time left'); continue
        start = time.monotonic()
        try: said[name] = part(b, said['machine'])
        except Exception as e: said[name] = dict(failed=f'{type(e).__name__}: {str(e)[:300]}', at=traceback.format_exc().splitlines()[-3].strip())
        print(f'{time.monotonic()-start:6.1f} s  {name}', flush=True)
    return said

def main(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path); p.add_argument('--seconds', type=float, default=540)
    p.add_argument('--device', choices=('cuda','cpu'), default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--toy', action='store_true')
    a = p.parse_args(words)
    toy = a.toy or a.device=='cpu'
    said = measure(a.device, toy, a.seconds)
    out = a.out or (None if toy else RESULT)
    text = json.dumps(said, indent=1)+'\n'
    if out: out.write_text(text, 'utf-8')
    print(text if toy and not out else f'{out} written')
    return int(any('failed' in v for v in said.values() if isinstance(v,dict)) or any(':' in v and 'no GPU' not in v for v in said.get('pages',{}).values()))

if __name__=='__main__': sys.exit(main())
