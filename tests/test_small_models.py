"The models that ship, as a user on a fresh clone meets them: stock classes, no network, the behaviours that pages rely on"
import json
import pandas as pd, pytest, torch
from sae_notebooks import load_model, points
from sae_notebooks.core.compat import import_torchvision
from sae_notebooks.core.data import catalogue, data_folder, verify
from sae_notebooks.models.sites import check_sites

import_torchvision()

def facts(part, n):
    f = pd.read_json(data_folder()/'facts'/'facts.jsonl', lines=True).query('part==@part')
    t = pd.read_json(data_folder()/'facts'/'templates.jsonl', lines=True)
    return f.sample(n, random_state=0), t

def answers(net, tok, f, t):
    "Share of facts whose object is what the model would write, asked in the sentences `t`"
    q = f.merge(t.groupby('relation').head(1), on='relation')
    prompts = [s[:s.index(' [Y]')].replace('[X]',x) for s,x in zip(q.template,q.subject)]
    right = 0
    for p,o in zip(prompts,q.object):
        a,b = tok(p).input_ids,torch.tensor([tok(f'{p} {o}').input_ids])
        right += bool((net(b).logits[0,len(a)-1:-1].argmax(-1)==b[0,len(a):]).all())
    return right/len(q)

@pytest.fixture(scope='module')
def language():
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder = data_folder()/'models'/'small_language'
    net,said = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not said['missing_keys'] and not said['unexpected_keys']
    return net.eval(),AutoTokenizer.from_pretrained(folder)

@torch.inference_mode()
def test_language_knows_what_it_read(language):
    some,t = facts('two kept back',60)
    seen,unseen = answers(*language, some, t[~t.kept_back]),answers(*language, some, t[t.kept_back])
    never = answers(*language, facts('unknown',60)[0], t)
    assert seen>.8 and unseen>.4 and never<.35<seen, (seen,unseen,never)

def test_language_writes_the_same_twice(language):
    net,tok = language
    x = tok('The capital city of', return_tensors='pt')
    a,b = (net.generate(**x, max_new_tokens=12, do_sample=False, pad_token_id=0) for _ in range(2))
    assert torch.equal(a,b) and tok.decode(a[0], skip_special_tokens=True).startswith('The capital city of ')

def test_language_has_sites():
    model = load_model('small_language')
    sites = points(model.net)
    assert {f'resid_post.{k}' for k in range(6)}<=set(sites) and model.point=='resid_post.3'
    batch = model.prepare(['The capital city of','A dog runs over the grass, and then'])
    assert max(check_sites(model.net, lambda: model.forward(batch)).values())<1e-5

@pytest.mark.parametrize('name', ['small_language'])
def test_model_is_named_with_its_recipe(name):
    item = catalogue().loc[name]
    assert verify(name) and item.licence and (data_folder().parent/item.recipe).is_file()
