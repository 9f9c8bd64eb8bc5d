"""Turning features on every kind of model: what is to change nothing changes no bit, what is written does not depend on the cache, on padding, on beams or on what else
is in the batch, and nothing is left on a model"""
import importlib, json, warnings
from types import SimpleNamespace
import pytest, torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from sae_notebooks.core.compat import import_torchvision
from sae_notebooks.core.data import model_folder, open_images
from sae_notebooks.core.files import BadInput
from sae_notebooks.models.hooks import capture, replace
from sae_notebooks.models.language import load_language
from sae_notebooks.models.llava import load_llava
from sae_notebooks.models.positions import as_sequence
from sae_notebooks.models.vision import load_vision
from sae_notebooks.saes import gated, guided, jumprelu, matryoshka, relu, topk
from sae_notebooks.saes.base import make_sae
from sae_notebooks.steering.intervene import Intervention, NothingChanged, RowEdit, by_direction, by_feature, intervene
from sae_notebooks.steering.steer import steer

def random_sae(architecture, d_in, d_sae=32, seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    sae = make_sae(architecture, d_in=d_in, d_sae=d_sae, **options)
    with torch.no_grad():
        for p in (sae.W_dec,sae.enc): p.copy_(torch.randn(p.shape, generator=g)/d_in**.5)
        for p in (sae.b_dec,sae.b_enc): p.copy_(.1*torch.randn(p.shape, generator=g))
        if hasattr(sae,'threshold'): sae.threshold.fill_(.05)
    return sae.eval()

# --- models of every kind --------------------------------------------------------------------------------------------

def tiny_llava(folder):
    hf = importlib.import_module('transformers')
    tok = hf.AutoTokenizer.from_pretrained(model_folder('stories260k'))
    tok.add_special_tokens({'additional_special_tokens':['<image>']})
    kw = dict(num_hidden_layers=3, num_attention_heads=4)
    tower = hf.CLIPVisionConfig(**kw, hidden_size=32, intermediate_size=48, image_size=32, patch_size=8)
    reader = hf.LlamaConfig(**kw, hidden_size=40, intermediate_size=64, vocab_size=len(tok), bos_token_id=1, eos_token_id=2)
    cfg = hf.LlavaConfig(vision_config=tower, text_config=reader, image_token_index=tok.convert_tokens_to_ids('<image>'))
    pixels = hf.CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32,width=32))
    processor = hf.LlavaProcessor(pixels, tok, patch_size=8, vision_feature_select_strategy='default', num_additional_image_tokens=1)
    torch.manual_seed(0)
    hf.LlavaForConditionalGeneration(cfg).save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_llava(folder)

def tiny_open_clip(folder):
    open_clip = importlib.import_module('open_clip')
    vision = dict(image_size=32, layers=2, width=32, head_width=16, patch_size=8)
    text = dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=2)
    torch.manual_seed(0)
    net = open_clip.CLIP(16, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text))
    folder.mkdir()
    save_file(net.state_dict(), folder/'open_clip_model.safetensors')
    cfg = dict(model_cfg=dict(embed_dim=16, vision_cfg=vision, text_cfg=text), preprocess_cfg=dict(mean=[.5]*3, std=[.5]*3))
    (folder/'open_clip_config.json').write_text(json.dumps(cfg))
    return load_vision(folder)

def tiny_vit(folder):
    hf = importlib.import_module('transformers')
    torch.manual_seed(0)
    cfg = hf.Dinov2WithRegistersConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8, num_register_tokens=4)
    hf.Dinov2WithRegistersModel(cfg).save_pretrained(folder)
    hf.ViTImageProcessor(size=dict(height=32,width=32)).save_pretrained(folder)
    return load_vision(folder)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    import_torchvision()
    d,photos = tmp_path_factory.mktemp('models'),open_images('photos')
    images = [photos[0],photos[40]]
    texts = ['Once upon a time there was a dog.','The end.']
    def of(model, items, *points): return SimpleNamespace(model=model, batch=model.prepare(items), points=points)
    small = load_vision('small_image_text')
    oc = tiny_open_clip(d/'oc')
    llava = tiny_llava(d/'llava')
    return dict(
        language=of(load_language('stories260k'), texts, 'embed','resid_post.2','mlp_out.1'),
        small_images=of(small, images, 'vision.pooler','vision.layer.5'), small_texts=of(small, texts, 'text.resid_post.1','text.text_projection'),
        open_clip_images=of(oc, images, 'vision.resid_post.0'), open_clip_texts=of(oc, texts, 'text.resid_post.0'),
        registers=of(tiny_vit(d/'vit'), images, 'resid_post.1'),
        llava=of(llava, list(zip(images, ('what is this','who'))), 'vision.resid_post.-2','model.multi_modal_projector','language.resid_post.1'))

KINDS = 'language small_images small_texts open_clip_images open_clip_texts registers llava'.split()

def hooked(net): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in net.modules())

def answer(m):
    "What a model says of a batch, as one tensor"
    with torch.no_grad(): out = m.model.logits(m.batch) if hasattr(m.model,'logits') else m.model.forward(m.batch)
    return out if isinstance(out, torch.Tensor) else out.last_hidden_state

def width(m, point):
    with capture(m.model.net, point) as acts: answer(m)
    return as_sequence(acts[point]).shape[2]

def bits(t): return t.contiguous().view(torch.uint8)
def same(a, b): return torch.equal(bits(a), bits(b))

nothing = dict(scale=1., add=0., add_relative=0., mix=1., guided=0., floor=-1., cap=1e6, project_cap=1e6)

@pytest.mark.parametrize('kind', KINDS)
def test_nothing_changes_no_bit(made, kind):
    m = made[kind]
    plain = answer(m)
    own = hooked(m.model.net) # transformers keeps some of its own
    for point in m.points:
        sae = random_sae('jumprelu', width(m, point))
        for op,v in nothing.items():
            iv = Intervention(point, op, features=5, strength=v, special=True)
            with pytest.warns(NothingChanged), intervene(m.model, iv, sae=sae): assert same(answer(m), plain), (point,op)
        with intervene(m.model, Intervention(point,'set',features=5,strength=9.), sae=sae) as run: changed = answer(m)
        used = run.table().touched.item()
        assert used>0 and not torch.equal(changed, plain), point
    assert hooked(m.model.net)==own and 'inputs' not in vars(m.model)

@pytest.mark.parametrize('kind', KINDS)
def test_set_to_what_it_is(made, kind):
    "Row by row, with the feature's own value in either unit"
    m = made[kind]
    for point in m.points:
        with capture(m.model.net, point) as acts: answer(m)
        rows = as_sequence(acts[point]).flatten(0,1)
        for architecture in ('relu','gated','topk','guided'):
            sae = random_sae(architecture, rows.shape[1], **dict(k=8) if architecture in ('topk','guided') else {})
            for unit in ('activation','contribution'):
                edit = RowEdit(Intervention(point,'set',features=3,strength=0.,unit=unit), sae)
                edit(rows)
                f = edit.features(rows.float())*edit.per_feature(rows.float())
                new,touched = edit(rows, f[:,0])
                assert same(new, rows) and not touched.any(), (point,architecture,unit)

WHERE = dict(language=dict(all=10), registers=dict(cls=2, patches=32, all=34), open_clip_images=dict(cls=2, patches=32, all=34),
             small_images=dict(all=2), llava=dict(cls=2, patches=32, all=34))

@pytest.mark.parametrize('kind', [k for k in WHERE if k!='language'])
def test_rows_that_are_edited(made, kind):
    m = made[kind]
    for where,n in WHERE[kind].items():
        iv = Intervention(m.points[0],'add',directions=torch.ones(width(m,m.points[0])),strength=1.,where=where)
        with intervene(m.model, iv) as run: answer(m)
        assert run.table().touched.item()==n, where

def test_texts_of_two_towers_leave_padding_and_marks_alone(made):
    for kind in ('open_clip_texts','small_texts'):
        m = made[kind]
        point = m.points[0]
        roles = m.model.roles(m.batch, point, m.batch.tokens.shape[1])
        iv = Intervention(point,'add',directions=torch.ones(width(m,point)),strength=1.)
        with intervene(m.model, iv) as run: answer(m)
        assert run.table().touched.item()==int((roles==0).sum()), kind

def test_patches_in_the_language_model(made):
    m = made['llava']
    iv = Intervention('language.resid_post.0','add',directions=torch.ones(40),strength=3.,where='patches')
    with intervene(m.model, iv) as run: answer(m)
    assert run.table().touched.item()==32

# --- writing ---------------------------------------------------------------------------------------------------------

prompts = ['Once upon a time','The dog','She was very happy and then']
D = 64

def scores(model, inputs, ivs, sae=None, n=6, **options):
    kw = dict(max_new_tokens=n, min_new_tokens=n, do_sample=False, output_scores=True, return_dict_in_generate=True, pad_token_id=2)|options
    with intervene(model, *ivs, sae=sae, warn=False), torch.no_grad(): out = model.net.generate(**inputs, **kw)
    return torch.stack(out.scores,1)[:,:,3:],out.sequences[:,inputs['input_ids'].shape[1]:]

def tokens(model, texts, side='left'):
    model.tokenizer.padding_side = side
    return dict(model.tokenizer(texts, padding=True, return_tensors='pt'))

def every_op(point, d, features=(5,)):
    "An intervention that does something, for each operator"
    v = dict(set=4., floor=4., cap=.1, scale=3., replace=4., replace_keep_error=4., guided=.5, add=3., add_relative=.4, project_set=3., project_cap=-5., mix=-1.)
    return [Intervention(point, op, features=features, strength=v.get(op)) for op in (*by_feature,*by_direction) if not (op=='project_cap' and len(features)>1)]

@pytest.mark.parametrize('where', ['all','prompt','generated','last','span:1:7'])
def test_cache_or_not(made, where):
    model = made['language'].model
    sae = random_sae('relu', D)
    given = tokens(model, prompts)
    plain,_ = scores(model, given, [Intervention('resid_post.2','add',features=5,strength=0.)], sae)
    for iv in every_op('resid_post.2', D):
        iv = Intervention.from_dict(iv.to_dict()|dict(where=where))
        cached,text = scores(model, given, [iv], sae)
        again,same_text = scores(model, given, [iv], sae, use_cache=False)
        torch.testing.assert_close(cached, again, atol=2e-3, rtol=1e-4)
        assert torch.equal(text, same_text) and (cached-plain).abs().max()>1e-3, iv.op

def test_padding_and_company(made):
    "Each prompt alone gives what it gives in a batch"
    model,sae = made['language'].model,random_sae('topk', D, k=8)
    for iv in every_op('resid_post.2', D):
        for where in ('all','last','span:2:4'):
            iv = Intervention.from_dict(iv.to_dict()|dict(where=where))
            whole,_ = scores(model, tokens(model,prompts), [iv], sae)
            alone = torch.cat([scores(model, tokens(model,[p]), [iv], sae)[0] for p in prompts])
            torch.testing.assert_close(whole, alone, atol=2e-3, rtol=1e-4)

def test_the_side_of_padding(made):
    "A forward pass over prompts padded on the right edits the same tokens as one over prompts padded on the left"
    model,sae = made['language'].model,random_sae('relu', D)
    for where in ('all','last','span:1:3'):
        iv = Intervention('resid_post.2','set',features=5,strength=5.,where=where)
        out = {}
        for side in ('left','right'):
            given = tokens(model, prompts, side)
            at = given['attention_mask'].cumsum(1)-1
            with intervene(model, iv, sae=sae), torch.no_grad(): y = model.net(**given, position_ids=at.clamp_min(0)).logits
            out[side] = torch.cat([r[m>0] for r,m in zip(y, given['attention_mask'])])
        torch.testing.assert_close(out['left'], out['right'], atol=1e-3, rtol=1e-4)

def test_beams(made):
    model,sae = made['language'].model,random_sae('relu', D)
    iv = Intervention('resid_post.2','set',features=5,strength=(0.,3.,6.))
    _,together = scores(model, tokens(model,prompts), [iv], sae, num_beams=3)
    apart = [scores(model, tokens(model,[p]), [iv.at(v)], sae, num_beams=3)[1] for p,v in zip(prompts,iv.strength)]
    assert torch.equal(together, torch.cat(apart))
    _,several = scores(model, tokens(model,prompts), [iv], sae, num_beams=3, num_return_sequences=2)
    assert torch.equal(several[::2], together)

def test_rows_are_separate_runs(made):
    model,sae = made['language'].model,random_sae('relu', D)
    given = tokens(model, ['Once upon a time']*5)
    for iv in every_op('resid_post.2', D):
        if iv.strength is None: continue
        v = tuple(iv.strength*t for t in (-1,0,.5,1,2))
        whole,_ = scores(model, given, [iv.at(v)], sae, n=1)
        one = {k:t[:1] for k,t in given.items()}
        apart = torch.cat([scores(model, one, [iv.at(x)], sae, n=1)[0] for x in v])
        torch.testing.assert_close(whole, apart, atol=1e-4, rtol=1e-5)

def test_a_loop_of_ones_own(made):
    "Without `generate`: passes with a cache, one token at a time, are the one pass over everything"
    model,sae = made['language'].model,random_sae('relu', D)
    ids = tokens(model, ['Once upon a time there was'])['input_ids']
    for where in ('all','span:2:5'):
        iv = Intervention('resid_post.2','set',features=5,strength=5.,where=where)
        with intervene(model, iv, sae=sae), torch.no_grad():
            whole = model.net(input_ids=ids).logits
            first = model.net(input_ids=ids[:,:3], use_cache=True)
            parts,cache = [first.logits],first.past_key_values
            for i in range(3,ids.shape[1]): parts.append(model.net(input_ids=ids[:,i:i+1], past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(parts,1), whole, atol=1e-3, rtol=1e-4)

def test_llava_with_and_without_cache(made):
    m = made['llava']
    given = {k:v for k,v in m.model.inputs(m.model.prepare([(open_images('photos')[0],'what'),(open_images('photos')[40],'who is it')],'left')).items()}
    for point,d,where in (('vision.resid_post.-2',32,'patches'),('language.resid_post.1',40,'all'),('language.resid_post.1',40,'patches'),('language.resid_post.1',40,'generated')):
        sae = random_sae('relu', d)
        iv = Intervention(point,'set',features=4,strength=6.,where=where)
        cached,text = scores(m.model, given, [iv], sae)
        again,same_text = scores(m.model, given, [iv], sae, use_cache=False)
        torch.testing.assert_close(cached, again, atol=2e-3, rtol=1e-4)
        _,beams = scores(m.model, given, [iv.at((6.,6.))], sae, num_beams=2)
        assert torch.equal(text, same_text) and len(beams)==2

def test_half_precision(tmp_path):
    "An SAE in float32 on a model in bfloat16 and float16: only the rows that are edited lose or gain a bit"
    for dtype in ('bfloat16','float16'):
        model = load_language('stories260k', dtype=dtype)
        batch,sae = model.prepare(prompts),random_sae('relu', D)
        with capture(model.net,'resid_post.2') as before: model.logits(batch)
        with intervene(model, Intervention('resid_post.2','set',features=5,strength=4.,where='last'), sae=sae) as run:
            with capture(model.net,'resid_post.2') as after: model.logits(batch)
        a,b = before['resid_post.2'],after['resid_post.2']
        moved = (a!=b).any(-1)
        assert b.dtype==a.dtype and moved.sum()==3==run.table().touched.item()
    tiny = Intervention('resid_post.2','add',features=5,strength=1e-12) # float16 has no such numbers
    with pytest.warns(NothingChanged), intervene(model, tiny, sae=sae): model.logits(batch)

# --- any module, errors ----------------------------------------------------------------------------------------------

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first,self.second = nn.Linear(3,8),nn.Linear(8,2)
    def forward(self, x, stop=False):
        h = self.first(x)
        if stop: raise KeyboardInterrupt
        return self.second(h)

@pytest.mark.parametrize('shape', [(5,3),(5,7,3)])
def test_any_module(shape):
    torch.manual_seed(0)
    net,x,sae = Plain(),torch.randn(shape),random_sae('relu',8)
    iv = Intervention('first','set',features=2,strength=3.)
    with intervene(net, iv, sae=sae) as run: got = net(x)
    h = net.first(x).detach().reshape(-1,8)
    want = net.second(RowEdit(iv,sae)(h)[0]).reshape(*shape[:-1],2)
    torch.testing.assert_close(got, want)
    assert run.table().touched.item()==len(h) and hooked(net)==0
    with pytest.raises(BadInput, match='one vector an item') if len(shape)==2 else warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with intervene(net, Intervention('first','add',features=2,strength=3.,where='span:0:2'), sae=sae): net(x)
    assert hooked(net)==0

def test_hooks_are_gone_after_ctrl_c():
    net = Plain()
    with pytest.raises(KeyboardInterrupt):
        with intervene(net, Intervention('first','set',features=2,strength=3.), Intervention('second:in','ablate',features=2), sae=random_sae('relu',8)): net(torch.randn(5,3), stop=True)
    assert hooked(net)==0

def test_blocks_within_blocks(made):
    model,sae = made['language'].model,random_sae('relu', D)
    given = tokens(model, prompts)
    a,b = (Intervention('resid_post.2',op,features=5,strength=3.,where='generated') for op in ('set','add'))
    with intervene(model, a, sae=sae): inner,_ = scores(model, given, [b], sae)
    # the outer block's hook was put on first, and a hook of hooks.replace goes before those that are there
    together,_ = scores(model, given, [b,a], sae)
    torch.testing.assert_close(inner, together, atol=1e-4, rtol=1e-5)
    assert hooked(model.net)==0 and 'generate' not in vars(model.net) and 'inputs' not in vars(model)

def test_bad_input(made):
    model,llava,sae = made['language'].model,made['llava'].model,random_sae('relu', D)
    iv = Intervention('resid_post.2','set',features=5,strength=3.)
    image = Image.new('RGB',(8,8))
    for what,items,who,more in (('is empty',['a',''],model,{}), ('is empty',['a','  '],model,{}), ('wants texts',[image],model,{}),
            ('wants pairs',['a'],llava,{}), ('wants pairs',[image],llava,{}), ('is empty',[(image,'')],llava,{}),
            ('does not write',[image],made['registers'].model,{}), ('no items',[],model,{}), ('finite',['a'],model,dict(strengths=[float('nan')])),
            ('no strengths',['a'],model,dict(strengths=[]))):
        with pytest.raises(BadInput, match=what): steer(who, items, iv, sae=sae, **more)
    assert hooked(model.net)==0

def at(sae, **record):
    sae.metadata = dict(store=dict(record))
    return sae

BAD = { # what the last line of acceptance lists, each with the words of its error
    'feature that does not exist': (dict(features=32), {}, 'there is no feature 32: the SAE has 32, 0 to 31'),
    'strength of NaN': (dict(strength=float('nan')), {}, 'strength must be a finite number'),
    'strength of NaN for a row': (dict(strength=(1.,float('inf'))), {}, 'strength must be a finite number'),
    'width of another SAE': ({}, dict(sae=lambda: random_sae('relu', D+8)), f'reads rows of {D+8} numbers, and .* gives rows of {D}'),
    'width that its config does not say': ({}, dict(sae=lambda: wider(random_sae('relu', D))), 'says d_sae and d_in'),
    'hook point of another SAE': ({}, dict(sae=lambda: at(random_sae('relu', D), point='resid_post.3', items=[])), 'was trained at resid_post.3, and the intervention is at resid_post.2'),
    'empty prompt': ({}, dict(items=['']), 'the prompt of item 0 is empty'),
    'image for a model of texts': ({}, dict(items=[Image.new('RGB',(8,8))]), 'wants texts; item 0 is a Image'),
}

def wider(sae):
    sae.cfg['d_in'] = sae.d_in+1
    return sae

@pytest.mark.parametrize('case', BAD)
def test_bad_sae_feature_strength_prompt(made, case):
    "A named error before a word is written, and nothing left on the model"
    model,(iv,more,why) = made['language'].model,BAD[case]
    sae = more.get('sae', lambda: random_sae('relu', D))()
    with pytest.raises(BadInput, match=why):
        steer(model, more.get('items',['Once']), Intervention('resid_post.2', 'set', **dict(dict(features=5, strength=3.), **iv)), sae=sae)
    assert hooked(model.net)==0

def test_sae_of_another_point_on_demand(made):
    model,sae = made['language'].model,at(random_sae('relu', D), point='resid_post.3', items=[])
    with intervene(model, Intervention('resid_post.2','set',features=5,strength=3.), sae=sae, allow_other=True) as run: model.logits(made['language'].batch)
    assert run.table().touched.item()>0

def test_sweep_is_one_batch(made):
    model,sae = made['language'].model,random_sae('relu', D)
    iv = Intervention('resid_post.2','set',features=5)
    calls = []
    handle = model.net.register_forward_pre_hook(lambda mod,args,kw: calls.append(len(kw['input_ids'])), with_kwargs=True)
    try: t = steer(model, prompts, iv, sae=sae, strengths=[None,0.,3.,6.], max_new_tokens=5)
    finally: handle.remove()
    assert set(calls)=={12} and list(t.columns)==['item','strength','text','rho'] and len(t)==12
    assert t.text[:3].tolist()==model.generate(prompts, max_new_tokens=5) and (t.rho[:3]==0).all() and (t.rho[9:]>0).all()
    parts = steer(model, prompts, iv, sae=sae, strengths=[None,0.,3.,6.], batch_size=5, max_new_tokens=5)
    assert parts.text.tolist()==t.text.tolist()
    torch.testing.assert_close(torch.tensor(parts.rho), torch.tensor(t.rho), atol=1e-5, rtol=1e-4)
    pairs = [(im,'what') for im in map(open_images('photos').__getitem__, (0,1))]
    t = steer(made['llava'].model, pairs, Intervention('vision.resid_post.-2','set',features=5), sae=random_sae('relu',32), strengths=[None,20.], max_new_tokens=4)
    assert t.rho.gt(0).tolist()==[False,False,True,True]
    assert t.text[:2].tolist()==made['llava'].model.generate(pairs, max_new_tokens=4)
