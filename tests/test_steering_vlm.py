"Turning features of the embedded vision-language model: the paper's formula by hand, what changes nothing, and the SAE that ships with it"
import pytest, torch
from sae_notebooks import load_model, load_report, load_sae, open_images
from sae_notebooks.core.data import catalogue, verify
from sae_notebooks.models.backbone import weights_id
from sae_notebooks.models.hooks import capture
from sae_notebooks.saes import jumprelu, relu
from sae_notebooks.saes.base import make_sae
from sae_notebooks.steering.intervene import Intervention, NothingChanged, RowEdit, intervene
from sae_notebooks.steering.llava import form_of, look_at, say, turned

points = 'vision.resid_post.-1','vision.resid_post.-2'

@pytest.fixture(scope='module')
def model(): return load_model('small_vision_language')

@pytest.fixture(scope='module')
def batch(model):
    photos = open_images('photos')
    return model.prepare([(photos[i],p) for i,p in ((3,'A photo of a'),(700,'A close up of'),(1500,'A photo of a'))], 'left')

def sae_of(architecture='jumprelu', d=256, seed=0):
    g,sae = torch.Generator().manual_seed(seed),make_sae(architecture, d_in=d, d_sae=64)
    with torch.no_grad():
        for p in (sae.W_dec,sae.enc): p.copy_(torch.randn(p.shape, generator=g)/d**.5)
        for p in (sae.b_dec,sae.b_enc): p.copy_(.1*torch.randn(p.shape, generator=g))
        if hasattr(sae,'threshold'): sae.threshold.fill_(.05)
    return sae.eval()

def first(out): return out[0] if isinstance(out, tuple) else out

def by_hand(net, batch, after, edit):
    "The forward pass written out: stem, blocks, an edit after one of them, projector, language model"
    tower = net.model.vision_tower
    h = tower.pre_layrnorm(tower.embeddings(batch.inputs['pixel_values']))
    for i,block in enumerate(tower.encoder.layers):
        h = first(block(h, None))
        if i==after: h = edit(h)
    p = net.model.multi_modal_projector
    seen = p.linear_2(p.act(p.linear_1(h)))
    words = net.model.language_model.embed_tokens(batch.inputs['input_ids']).clone()
    words[batch.inputs['input_ids']==net.config.image_token_id] = seen.flatten(0,1)
    out = net.model.language_model(inputs_embeds=words, attention_mask=batch.inputs['attention_mask']).last_hidden_state
    return net.lm_head(out)

@pytest.mark.parametrize('point', points)
def test_recon_is_the_papers_formula(model, batch, point):
    "Eq. 10: threshold-encode every position, set one feature, decode; the error is not put back"
    sae,k,alpha = sae_of(),5,40.
    def edit(h):
        pre = (h-sae.b_dec)@sae.enc.T+sae.b_enc
        f = torch.where(pre>sae.threshold, pre, 0.)
        f[...,k] = alpha
        return f@sae.W_dec+sae.b_dec
    with torch.no_grad():
        plain = model.net(**batch.inputs).logits
        hand = by_hand(model.net, batch, len(model.net.model.vision_tower.encoder.layers)+int(point.split('.')[-1]), edit)
        with intervene(model, form_of('recon', point, k).at(alpha), sae=sae): ours = model.net(**batch.inputs).logits
        same = by_hand(model.net, batch, None, None)
    real = batch.inputs['attention_mask']>0
    torch.testing.assert_close(same[real], plain[real], atol=1e-4, rtol=1e-5)
    assert (ours-hand)[real].norm()<=1e-5*hand[real].norm() and (ours-plain)[real].norm()>.01*plain[real].norm()

@pytest.mark.parametrize('point', points)
def test_nothing_changes_no_bit(model, batch, point):
    sae,kw = sae_of(),dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, output_scores=True, return_dict_in_generate=True, pad_token_id=0)
    def write(cache): return torch.stack(model.net.generate(**batch.inputs, use_cache=cache, **kw).scores)
    for cache in (True,False):
        plain = write(cache)
        for op,v in dict(scale=1., add=0., mix=1.).items():
            with pytest.warns(NothingChanged), intervene(model, Intervention(point, op, features=5, strength=v), sae=sae):
                assert torch.equal(write(cache), plain), (op,cache)
    with torch.no_grad(), capture(model.net, point) as acts: model.forward(batch)
    rows = acts[point].flatten(0,1)
    edit = RowEdit(Intervention(point,'set',features=3,strength=0.,unit='activation'), sae)
    edit(rows)
    new,touched = edit(rows, edit.features(rows)[:,0])
    assert torch.equal(new, rows) and not touched.any()

def test_rows_are_separate_runs(model, batch):
    sae,strengths = sae_of(),(0.,20.,60.)
    for kind in ('delta','recon'):
        iv = form_of(kind, points[0], 5)
        with torch.no_grad():
            with intervene(model, iv.at(strengths), sae=sae): whole = model.net(**batch.inputs).logits
            for i,v in enumerate(strengths):
                with intervene(model, iv.at(v), sae=sae): one = model.net(**batch.inputs).logits[i]
                assert (whole[i]-one).norm()<=1e-5*one.norm(), (kind,v)

def test_hooks_are_gone_after_an_exception(model, batch):
    with torch.no_grad(): plain = model.net(**batch.inputs).logits
    with pytest.raises(KeyboardInterrupt), intervene(model, form_of('delta', points[0], 5).at(60.), sae=sae_of()): raise KeyboardInterrupt
    with torch.no_grad(): assert torch.equal(model.net(**batch.inputs).logits, plain)

def test_rows_and_hooks_agree(model):
    "Edited rows that are handed on say what a hook makes the model say"
    photos,sae = open_images('photos'),sae_of('relu')
    images = [photos[3],photos[700]]
    for kind in ('delta','recon'):
        iv = form_of(kind, points[0], 7).at(30.)
        seen = look_at(model, images)
        with intervene(model, iv, sae=sae) as run: said = model.generate([(im,'A photo of a') for im in images], max_new_tokens=6)
        rows,rho = turned(seen, iv, sae)
        assert say(seen, 'A photo of a', rows, max_new_tokens=6)==said
        torch.testing.assert_close(rho.double(), torch.from_numpy(run.by_row().rho_mean.to_numpy()), atol=1e-5, rtol=1e-4)

def test_the_sae_that_ships(model):
    "It is of these weights, explains unseen photographs, and its report is of its features"
    name = 'small_vision_language_sae'
    sae,report = load_sae(name),load_report(name)
    assert verify(name) and catalogue().kind[name]=='sae'
    assert sae.metadata['weights']==weights_id(model.net), 'run nbs/recipes/40_vision_sae.ipynb again: the model has other weights'
    assert len(report.features)==sae.d_sae and {'purity','label','support','name'}<=set(report.features)
    photos = open_images('photos')
    unseen = photos.where((photos.items.seen_by_model=='0').to_numpy())
    x = look_at(model, [unseen[i] for i in range(0,len(unseen),60)]).rows[:,1:].flatten(0,1)
    with torch.no_grad(): left = (x-sae(x)).square().sum()/(x-x.mean(0)).square().sum()
    assert left<.6, f'{left:.2f} of the variance is not explained'
