"The embedded vision-language model: it opens with the library's own classes, its places are where they are said to be, and it says what is on photographs that it never saw"
import pytest, torch
import numpy as np
import pandas as pd
from sae_notebooks import load_model, load_vision
from sae_notebooks.core.compat import import_torchvision
from sae_notebooks.core.data import data_folder, model_folder, open_images
from sae_notebooks.models.hooks import capture, replace
from sae_notebooks.models.sites import check_sites, sites

name = 'small_vision_language'

@pytest.fixture(scope='module')
def unseen():
    photos = open_images('photos')
    rows = photos.items
    at = np.flatnonzero(((rows.seen_by_model=='0')&(rows.dataset=='caltech101')).to_numpy())
    at = np.random.default_rng(0).choice(at, 40, replace=False)
    return [photos[i] for i in at],[photos.labels[i] for i in at]

@pytest.fixture(scope='module')
def model(): return load_model(name)

def test_stock_classes_miss_nothing():
    import_torchvision()
    import transformers
    net,found = transformers.LlavaForConditionalGeneration.from_pretrained(model_folder(name), output_loading_info=True)
    assert not any(found[k] for k in ('missing_keys','unexpected_keys','mismatched_keys')), found
    assert net.dtype==torch.float32
    assert type(transformers.AutoProcessor.from_pretrained(model_folder(name))).__name__=='LlavaProcessor'

def test_sites(model, unseen):
    batch = model.prepare([(im,'A close up of') for im in unseen[0][:2]])
    layers = len(model.net.model.language_model.layers)
    assert len(sites(model.net))==2+5*(4+layers)
    assert max(check_sites(model.net, lambda: model.forward(batch)).values())<1e-5
    with capture(model.net, model.point) as acts: model.forward(batch)
    assert acts[model.point].shape==(2,65,256)

def test_what_is_read_matters(model, unseen):
    pair = [(unseen[0][0],'')]
    said = model.generate(pair)
    with replace(model.net, {model.point: lambda a: a}): assert model.generate(pair)==said
    with replace(model.net, {model.point: torch.zeros_like}): assert model.generate(pair)!=said

def test_generation_is_deterministic(model, unseen):
    pairs = [(im,'') for im in unseen[0][:6]]
    said = model.generate(pairs)
    assert said==model.generate(pairs)==load_model(name).generate(pairs)
    assert [model.generate([p])[0] for p in pairs[:2]]==said[:2] # padding and company change nothing

def test_captions_name_the_class(model, unseen):
    images,labels = unseen
    said = [c.lower() for c in model.generate([(im,'') for im in images])]
    right,chance = [np.mean([n.lower() in c for n,c in zip(labels,some)]) for some in (said,said[1:]+said[:1])]
    claimed = pd.read_csv(data_folder()/'models'/name/'figures.csv').set_index('what').low.filter(like='caption, caltech101').item()
    assert right>claimed-.1 and right>chance, (right,chance,claimed) # 40 photographs

def test_tower_with_the_text_tower(unseen):
    images,labels = unseen
    tower = load_model('small_tower')
    names = sorted(set(open_images('photos').labels))
    sim = tower.embed_images(images)@tower.embed_text([f'a photo of a {n}' for n in names]).T
    assert np.mean([names[j]==n for j,n in zip(sim.argmax(1).tolist(),labels)])>=.5
    assert max(check_sites(tower.net, lambda: tower.forward(tower.prepare(images[:2]))).values())<1e-5
    assert load_vision(name).takes==('image','text')

def test_card_and_figures_agree():
    figures = pd.read_csv(data_folder()/'models'/name/'figures.csv')
    assert ((figures.low<=figures.figure)&(figures.figure<=figures.high)).all()
    card = (data_folder()/'README.md').read_text(encoding='utf-8').split('## The small vision-language model')[1].split('\n## ')[0]
    for f in figures.figure: assert f'{f:.3f}'.lstrip('0') in card, f'{f:.3f} is not in data/README.md'
