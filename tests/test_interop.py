"Files we write, opened by the other libraries' own code, and theirs by ours: the same features. Needs their environments, see CONTRIBUTING: SAE_NOTEBOOKS_PEERS names the folder."
import json,os,subprocess,sys
from pathlib import Path
import pytest,torch
from sae_notebooks.core.synthetic import plant
from sae_notebooks.saes.base import make_sae
from sae_notebooks.saes.interop import read_sae, save_as

peers = os.environ.get('SAE_NOTEBOOKS_PEERS')
pytestmark = pytest.mark.skipif(not peers, reason="set SAE_NOTEBOOKS_PEERS to a folder with the environments of sae-lens, dictionary-learning, eai-sparsify, lm-eval, repeng, sae-dashboard and visaebench")

def python_of(venv):
    "A peer's interpreter; a test whose environment is not there is skipped"
    exe = f'{peers}/v_{venv}/bin/python'
    if not os.path.exists(exe): pytest.skip(f'no {exe}')
    return exe

OPEN = dict(saelens=('sae-lens', 'from sae_lens import SAE; s=SAE.load_from_disk(p); enc=s.encode; out=lambda x: s.decode(s.encode(x))'),
    dictionary_learning=('dictionary-learning', '''import json, torch
from dictionary_learning.dictionary import AutoEncoder,GatedAutoEncoder,JumpReluAutoEncoder
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
c = globals()[json.load(open(p+"/config.json"))["trainer"]["dict_class"]]
s = c.from_pretrained(p+"/ae.pt", **(dict(normalize_decoder=False) if c is AutoEncoder else {})); enc=s.encode; out=s.forward'''),
    sparsify=('eai-sparsify', '''from sparsify import SparseCoder
s=SparseCoder.load_from_disk(p)
def enc(x):
    o=s.encode(x); f=torch.zeros(len(x),s.num_latents); return f.scatter(1,o.top_indices,o.top_acts)
out=lambda x: s(x).sae_out'''))

MAKE = dict(saelens=('sae-lens', {'standard':'from sae_lens import StandardTrainingSAE as C,StandardTrainingSAEConfig as K; s=C(K(d_in=32,d_sae=64))',
    'topk':'from sae_lens import TopKTrainingSAE as C,TopKTrainingSAEConfig as K; s=C(K(d_in=32,d_sae=64,k=4))',
    'jumprelu':'from sae_lens import JumpReLUTrainingSAE as C,JumpReLUTrainingSAEConfig as K; s=C(K(d_in=32,d_sae=64,jumprelu_init_threshold=.3))',
    'batchtopk':'from sae_lens import BatchTopKTrainingSAE as C,BatchTopKTrainingSAEConfig as K; s=C(K(d_in=32,d_sae=64,k=4.))\ns.topk_threshold.fill_(.6)',
    'gated':'from sae_lens import GatedTrainingSAE as C,GatedTrainingSAEConfig as K; s=C(K(d_in=32,d_sae=64))'}, '''
for q in s.parameters(): q.data += .1*torch.randn(q.shape, generator=g)
if hasattr(s,'log_threshold'): s.log_threshold.data.clamp_(-3,0)
s.save_inference_model(p)
from sae_lens import SAE; s=SAE.load_from_disk(p); enc=s.encode; out=lambda x: s.decode(s.encode(x))'''),
    sparsify=('eai-sparsify', {'topk':'from sparsify import SparseCoder,SparseCoderConfig; s=SparseCoder(32,SparseCoderConfig(num_latents=64,k=4))'}, '''
for q in s.parameters(): q.data += .1*torch.randn(q.shape, generator=g)
s.save_to_disk(p)
def enc(x):
    o=s.encode(x); f=torch.zeros(len(x),s.num_latents); return f.scatter(1,o.top_indices,o.top_acts)
out=lambda x: s(x).sae_out'''))

def there(venv, code, p, x):
    "Run code in a peer's environment and bring back its features and reconstructions"
    torch.save(x, p/'x.pt')
    script = f'import sys,torch\np={str(p)!r}; x=torch.load(p+"/x.pt"); g=torch.Generator().manual_seed(5)\nwith torch.no_grad():\n'
    script += '\n'.join('    '+l for l in (code+'\nf=enc(x); y=out(x)\ntorch.save((f.detach().cpu(),y.detach().cpu()), p+"/out.pt")').splitlines())
    r = subprocess.run([python_of(venv),'-c',script], capture_output=True, text=True, timeout=600, env=dict(os.environ, WANDB_MODE='disabled', HF_HUB_OFFLINE='1'))
    assert r.returncode==0, r.stderr[-2500:]
    return torch.load(p/'out.pt')

def some(arch):
    s = make_sae(arch, d_in=32, d_sae=64, **dict(topk=dict(k=4), batchtopk=dict(k=4), matryoshka=dict(k=4), jumprelu=dict(threshold=.9)).get(arch,{}))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for n,p in s.named_parameters():
            if p.ndim==1 and n!='threshold': p.normal_(0,.1, generator=g)
    return (s.calibrate(rows()) if hasattr(s,'calibrate') else s).eval()
rows = lambda: plant().sample(256, seed=0)[0]
cases = [(l,a) for l,archs in dict(saelens=('relu','topk','batchtopk','matryoshka','jumprelu','gated'), dictionary_learning=('relu','topk','batchtopk','matryoshka','jumprelu','gated'), sparsify=('topk',)).items() for a in archs]

@pytest.mark.parametrize('layout,arch', cases)
def test_ours_in_theirs(layout, arch, tmp_path):
    s,x = some(arch),rows()
    save_as(s, tmp_path, layout)
    f,y = there(*OPEN[layout], tmp_path, x)
    assert torch.allclose(f, s.encode(x), atol=1e-5) and torch.allclose(y, s(x), atol=1e-5)

@pytest.mark.parametrize('layout,arch', [(l,a) for l,(_,m,_) in MAKE.items() for a in m])
def test_theirs_in_ours(layout, arch, tmp_path):
    venv,make,rest = MAKE[layout]
    f,y = there(venv, make[arch]+rest, tmp_path, x:=rows())
    s = read_sae(tmp_path)
    assert torch.allclose(s.encode(x), f, atol=1e-5) and torch.allclose(s(x), y, atol=1e-5)
    assert 0<(f>0).float().mean()<.9

# --- the same loss and gradients as their own training code ----------------------------------------------------------

TRAIN = dict(dictionary_learning=('dictionary-learning', '''
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
with torch.enable_grad():
    C,kw = dict(topk=(TopKTrainer,dict(k=4,auxk_alpha=0)), batchtopk=(BatchTopKTrainer,dict(k=4,auxk_alpha=0)), relu=(StandardTrainer,dict(l1_penalty=.05,sparsity_warmup_steps=None)), gated=(GatedSAETrainer,dict(l1_penalty=.05,sparsity_warmup_steps=None)))[arch]
    tr = C(steps=10, activation_dim=32, dict_size=64, layer=0, lm_name='none', device='cpu', warmup_steps=0, **kw)
    tr.ae.load_state_dict(torch.load(p+'/ae.pt')); loss = tr.loss(x, step=5); loss.backward()
    w = dict(tr.ae.named_parameters())
name = dict(enc='encoder.weight', W_dec='decoder.weight', b_enc='gate_bias' if arch=='gated' else 'encoder.bias', b_dec={'relu':'bias','gated':'decoder_bias'}.get(arch,'b_dec'), r_mag='r_mag', b_mag='mag_bias')
g = {k:(w[n].grad.T if k=='W_dec' else w[n].grad) for k,n in name.items() if n in w}
torch.save((loss.detach(),g), p+'/out.pt')''', ('topk','batchtopk','relu','gated')),
    saelens=('sae-lens', '''
import sae_lens as L
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file
with torch.enable_grad():
    K,C,kw = dict(topk=(L.TopKTrainingSAEConfig,L.TopKTrainingSAE,dict(k=4)), batchtopk=(L.BatchTopKTrainingSAEConfig,L.BatchTopKTrainingSAE,dict(k=4.)), relu=(L.StandardTrainingSAEConfig,L.StandardTrainingSAE,{}),
        jumprelu=(L.JumpReLUTrainingSAEConfig,L.JumpReLUTrainingSAE,dict(jumprelu_bandwidth=.2,jumprelu_sparsity_loss_mode='step')))[arch]
    s = C(K(d_in=32, d_sae=64, apply_b_dec_to_input=True, **kw))
    t = load_file(p+'/sae_weights.safetensors'); w = dict(s.named_parameters())
    for n in w: w[n].data.copy_(t[n])
    loss = s.training_forward_pass(TrainStepInput(sae_in=x, coefficients=dict(l1=.05,l0=.01), dead_neuron_mask=None, n_training_steps=0, is_logging_step=False)).loss
    loss.backward()
g = {k:w[n].grad.T if k=='enc' else w[n].grad for k,n in dict(enc='W_enc',W_dec='W_dec',b_enc='b_enc',b_dec='b_dec',threshold='threshold').items() if n in w}
torch.save((loss.detach(),g), p+'/out.pt')''', ('topk','batchtopk','relu','jumprelu')))

@pytest.mark.parametrize('layout,arch,low', [(l,a,False) for l,(_,_,archs) in TRAIN.items() for a in archs]+[('saelens','jumprelu',True)])
def test_same_loss_and_gradients(layout, arch, low, tmp_path):
    venv,code,_ = TRAIN[layout]
    s,x = some(arch).train(),rows()
    if low: s.threshold.data.fill_(.05); s.b_enc.data.sub_(.3) # below half the band, which reaches below zero
    s.cfg.update({'relu':dict(l1=.05), 'gated':dict(l1=.05), 'jumprelu':dict(l0=.01, band=.2)}.get(arch,{}))
    save_as(s, tmp_path, layout); torch.save(x, tmp_path/'x.pt')
    script = f'import torch\np={str(tmp_path)!r}; arch={arch!r}; x=torch.load(p+"/x.pt")\n'+code
    r = subprocess.run([python_of(venv),'-c',script], capture_output=True, text=True, timeout=600, env=dict(os.environ, WANDB_MODE='disabled', HF_HUB_OFFLINE='1'))
    assert r.returncode==0, r.stderr[-2500:]
    want,grads = torch.load(tmp_path/'out.pt')
    fit = s.losses(x); fit.loss.backward()
    assert torch.allclose(fit.loss, want, rtol=1e-5), (fit.loss,want)
    across = lambda g: g-(g*s.W_dec.detach()).sum(1,keepdim=True)*s.W_dec.detach() # atoms have length one: what would lengthen them is dropped by both
    for n,g in grads.items():
        mine = getattr(s,n).grad
        if n=='W_dec': mine,g = across(mine),across(g)
        assert torch.allclose(mine, g, atol=1e-5*max(1,g.abs().max().item())), (n,(mine-g).abs().max())

# --- interventions and features in others' files ----------------------------------------------------------------------

def run_there(venv, code, p):
    "Run code in a peer's environment; what it saves as out.pt"
    r = subprocess.run([python_of(venv),'-c',f'import torch\np={str(p)!r}\n{code}'], capture_output=True, text=True, timeout=900, env=dict(os.environ, HF_HUB_OFFLINE='1'))
    assert r.returncode==0, r.stderr[-2500:]
    return torch.load(p/'out.pt', weights_only=False)

def turned():
    "A model, an SAE, its feature added and another's projection set"
    from sae_notebooks.models.language import load_language
    from sae_notebooks.steering.intervene import Intervention
    sae = make_sae('topk', d_in=64, d_sae=256, k=4); sae.b_dec.data = .1*torch.randn(64, generator=torch.Generator().manual_seed(0))
    add = Intervention('resid_post.2', 'add', features=[7], strength=3., special=True)
    return load_language('stories260k'),sae,add,Intervention('resid_post.1', 'project_set', features=[9], strength=2., special=True, centre=True)

def test_steered_in_the_harness(tmp_path):
    "The logits of lm-evaluation-harness's steered model are ours; of two adds, which are refused here, it takes the last vector twice"
    from sae_notebooks.core.data import model_folder
    from sae_notebooks.steering.formats import save_steered
    from sae_notebooks.steering.intervene import intervene
    model,sae,add,clamp = turned(); save_steered([add,clamp], tmp_path/'s.pt', model.net, sae); batch = model.prepare(['Once upon a time there was a dog.']); torch.save(batch.tokens, tmp_path/'ids.pt')
    theirs = run_there('lm-eval', f'''from lm_eval.models.hf_steered import SteeredModel
m = SteeredModel(pretrained={str(model_folder('stories260k'))!r}, steer_path=p+"/s.pt", device="cpu", dtype="float32")
torch.save(m._model_call(torch.load(p+"/ids.pt")).float().cpu(), p+"/out.pt")''', tmp_path)
    with intervene(model, add, clamp, sae=sae): ours = model.logits(batch)
    assert torch.allclose(theirs, ours, atol=1e-3) and (ours-model.logits(batch)).abs().max()>.1

def test_control_vector_in_repeng(tmp_path):
    "repeng reads our directions, and we read what it writes"
    import numpy as np
    from sae_notebooks.steering.formats import read_control_vector, save_control_vector
    model,sae,add,_ = turned(); save_control_vector(add, tmp_path/'v.gguf', model.net, sae)
    theirs = run_there('repeng', '''from repeng import ControlVector
v = ControlVector.import_gguf(p+"/v.gguf"); (v*2).export_gguf(p+"/w.gguf"); torch.save((v.model_type,{k:torch.tensor(d.copy()) for k,d in v.directions.items()}), p+"/out.pt")''', tmp_path)
    assert theirs[0]=='llama' and list(theirs[1])==[2] and torch.allclose(theirs[1][2], 3*sae.W_dec[7]/sae.W_dec[7].norm(), atol=1e-5)
    (back,) = read_control_vector(tmp_path/'w.gguf'); assert back.point=='resid_post.2' and np.allclose(back.directions[0], 2*theirs[1][2].numpy(), atol=1e-5)

def test_control_vector_in_gguf(tmp_path):
    "The format's own library, which repeng and llama.cpp's scripts write with, finds in our file what we put there; and we find what it writes"
    from sae_notebooks.steering.formats import read_gguf, save_control_vector
    model,sae,add,_ = turned(); save_control_vector(add, tmp_path/'v.gguf', model.net, sae)
    said,rows = run_there('repeng', '''import gguf
r = gguf.GGUFReader(p+"/v.gguf"); said = {k:f.contents() for k,f in r.fields.items() if not k.startswith("GGUF.")}; rows = {t.name:torch.tensor(t.data.copy()) for t in r.tensors}
w = gguf.GGUFWriter(p+"/w.gguf", "controlvector"); w.add_string("controlvector.model_hint", "llama"); w.add_uint32("controlvector.layer_count", 1)
for k,t in rows.items(): w.add_tensor(k, t.numpy())
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close(); torch.save((said,rows), p+"/out.pt")''', tmp_path)
    ours,kept = read_gguf(tmp_path/'v.gguf'),read_gguf(tmp_path/'w.gguf')
    assert said==ours[0] and {**kept[0]}.items()<=said.items() and list(rows)==list(ours[1])==list(kept[1])==['direction.2']
    for t in (ours[1],kept[1]): assert (rows['direction.2'].numpy()==t['direction.2']).all()

def test_features_in_saedashboard(tmp_path):
    "SAEDashboard's own classes take our batches, and give the same numbers back"
    import numpy as np, pandas as pd
    from sae_notebooks.core.codes import dense_to_codes
    from sae_notebooks.metrics.contexts import Contexts
    from sae_notebooks.metrics.report import FeatureReport
    from sae_notebooks.viz.neuronpedia import save_neuronpedia
    class Store: items,item,span = pd.DataFrame(dict(text=['a cat ran'])),np.zeros(3,int),np.array([[0,1],[2,5],[6,9]])
    r = FeatureReport(pd.DataFrame(dict(density=[.3])).rename_axis('feature'), dict(kind='text'), np.array([[0]]), np.array([[2.]]), codes=dense_to_codes(torch.tensor([[2.]])), item=np.arange(1), contexts=Contexts(np.array([0,1]),np.array([[2,5]]),np.array([2.]),np.zeros((1,2))))
    save_neuronpedia(r, tmp_path/'np', make_sae('topk', d_in=5, d_sae=1, k=1), ['a cat ran'], Store, model_id='m', layer=1, sae_set='s')
    d = run_there('sae-dashboard', '''import json
from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch
b = NeuronpediaDashboardBatch(**json.load(open(p+"/np/batch-0.json"))); torch.save(b.to_dict(), p+"/out.pt")''', tmp_path)
    ours = json.load(open(tmp_path/'np'/'batch-0.json')); assert {k:d[k] for k in ours if k!='features'}=={k:v for k,v in ours.items() if k!='features'}
    (mine,),(theirs,) = ours['features'],d['features']; assert {k:theirs[k] for k in mine if k!='activations'}=={k:v for k,v in mine.items() if k!='activations'} # they add fields of later versions
    assert [{k:t[k] for k in m} for m,t in zip(mine['activations'],theirs['activations'])]==mine['activations'] and mine['activations'][0]['values']==[0.,2.,0.]

VISAEBENCH = '''
import numpy as np, visaebench.metrics.spatial_coherence.localization as loc, visaebench.metrics.reconstruction.downstream as down
a = torch.load(p+"/given.pt")
class S:
    def encode(self, x): z = (x-a["b_dec"])@a["W_enc"]+a["b_enc"]; return z*(z>a["threshold"])
    def decode(self, f): return f@a["W_dec"]+a["b_dec"]
m = loc.FeatureLocalization(grid_size=a["shape"], min_images_per_feature=5, max_images_per_feature=10**6, max_features=10**6)
r = m.compute(S(), a["acts"], device="cpu")
d = down.DownstreamPreservation().compute(S(), a["acts"], device="cpu", labels=a["labels"])
torch.save(dict(value=r.value, each=r.metadata["per_feature_scores"], ratio=d.value, **{k:d.metadata[k] for k in ("accuracy_original","accuracy_reconstructed")}), p+"/out.pt")
'''

def test_visaebench_agrees(tmp_path):
    "Localization and downstream preservation of one real SAE of patches, by ViSAEBench's own package and by ours"
    import numpy as np
    from sklearn.model_selection import train_test_split
    from sae_notebooks import extract, load_vision, open_images, train
    from sae_notebooks.core.split import given_split
    from sae_notebooks.metrics.probing import downstream_preservation
    from sae_notebooks.metrics.spatial import spatial_coherence
    photos = open_images('photos')
    photos = photos.where(range(0, len(photos), max(1, len(photos)//200)))
    store = extract(load_vision('small_vision_language'), photos, tmp_path/'patches', 'vision.resid_post.-1', 'patches', progress=False)
    x,n = store[:].float(),len(store.items)
    P = len(x)//n; side = int(P**.5)
    sae = train(x, 'batchtopk', sae_options=dict(d_sae=192, k=8), steps=300, lr=2e-3, progress=False)
    kind = np.unique(store.items.label, return_inverse=True)[1]
    some = np.bincount(kind)[kind]>=5 # their split takes two of a class
    keep = torch.from_numpy(np.repeat(some,P))
    x,kind,n = x[keep],np.unique(kind[some], return_inverse=True)[1],int(some.sum())
    acts = x.view(n,P,-1)
    given = dict({k:getattr(sae,k).detach() for k in ('W_enc','b_enc','W_dec','b_dec','threshold')}, acts=acts, labels=kind.tolist(), shape=(side,side))
    torch.save(given, tmp_path/'given.pt')
    script = f'import torch\np={str(tmp_path)!r}\n'+VISAEBENCH
    r = subprocess.run([python_of('visaebench'),'-c',script], capture_output=True, text=True, timeout=600, env=dict(os.environ, HF_HUB_OFFLINE='1'))
    assert r.returncode==0, r.stderr[-2500:]
    theirs = torch.load(tmp_path/'out.pt')
    with torch.no_grad(): codes,recons = sae.codes(x),sae(x)
    ours = spatial_coherence(codes, (side,side), min_images=5).table()
    each = {i:v for i,v in enumerate(theirs['each']) if v is not None}
    assert list(each)==ours.index.tolist() and len(each)>20
    assert np.allclose(ours.moran, list(each.values()), atol=1e-5) and abs(ours.moran.mean()-theirs['value'])<1e-5
    fit,test = train_test_split(np.arange(n), test_size=.2, stratify=kind, random_state=42)
    part = np.full(n, 'fit', dtype=object); part[test] = 'test'; part[fit[0]] = 'choose'
    pooled = [v.view(n,P,-1).mean(1) for v in (x,recons)]
    t = downstream_preservation(*pooled, kind, given_split(part), scaled=False, draws=10)
    assert abs(t.accuracy['activations']-theirs['accuracy_original'])<1e-9
    assert abs(t.accuracy['reconstructions']-theirs['accuracy_reconstructed'])<1e-9 and abs(t.ratio['reconstructions']-theirs['ratio'])<1e-9
