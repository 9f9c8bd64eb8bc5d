"Where rows were taken, what was trained on, who judges, and which photographs are shown: recorded, compared, and refused where they do not fit"
import io, json, re
from contextlib import redirect_stderr, redirect_stdout
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from sae_notebooks import measure, open_images, train
from sae_notebooks.acts.combine import store_rows
from sae_notebooks.acts.store import ActStore
from sae_notebooks.core.files import BadInput, read_json
from sae_notebooks.core.synthetic import plant
from sae_notebooks.dev.cli import main
from sae_notebooks.metrics.report import FeatureReport, load_report
from sae_notebooks.saes.base import load_sae, make_sae
from sae_notebooks.viz.card import card_lines, report_card

N = 240

def sh(line, folder, monkeypatch):
    "(status, what was printed) of a command, called in a folder"
    said,status = io.StringIO(),0
    monkeypatch.chdir(folder); monkeypatch.setenv('TQDM_DISABLE','1')
    try:
        with redirect_stdout(said),redirect_stderr(said): main(line.split())
    except SystemExit as e: status = e.code or 0
    return status,said.getvalue()

def photographs(folder, n=N, seed=0):
    "Coloured squares as files, with the same names for every seed"
    folder.mkdir()
    for i,c in enumerate(np.random.default_rng(seed).integers(0, 256, (n,3))): Image.new('RGB', (8,8), tuple(map(int, c))).save(folder/f'{i:03}.png')
    return open_images(folder)

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A folder: photographs, a store of two points over them, a judge's, and an SAE of the second point with a fifth held out"
    d = tmp_path_factory.mktemp('provenance')
    truth = plant(d_in=16, n_features=16, l0=2, power=0)
    x,codes = truth.sample(N, seed=1)
    g = torch.Generator().manual_seed(0)
    items = photographs(d/'photos').items.assign(label=[f'kind {k%4}' for k in range(N)])
    items['patient'] = [f'p{k//3}' for k in range(N)]
    store = store_rows(d/'acts', {'block.1':x@torch.randn(16,16,generator=g),'block.2':x}, items, meta=dict(model='net', rule='cls', sites=['block.1','block.2']))
    judge = store_rows(d/'judge', codes.to_dense()+.1*torch.randn(N,16,generator=g), items, meta=dict(model='other', point='pooler', rule='cls'))
    return d,store,judge

kw = dict(sae_options=dict(d_sae=24, k=2), steps=60, batch_size=64, lr=3e-3, progress=False)
quick = dict(draws=10, fms=False, progress=False)

# --- where the rows were taken ---------------------------------------------------------------------------------------

def test_a_site_carries_its_point_into_all_that_is_made_of_it(world, tmp_path):
    d,store,judge = world
    second = store.site('block.2')
    train(second, 'topk', tmp_path/'sae', **kw)
    assert read_json(tmp_path/'sae'/'cfg.json')['metadata']['store']['point']=='block.2'
    report = measure(load_sae(tmp_path/'sae'), second, judge, **quick)
    assert (report.summary['point'],report.summary['rule'])==('block.2','cls')
    assert card_lines(report)['layer']=='net block.2 cls'

def test_another_point_rule_or_model_is_refused(world, tmp_path):
    d,store,judge = world
    sae = train(store.site('block.2'), 'topk', tmp_path/'sae', **kw)
    x = store.site('block.2')[:]
    others = dict(point=store, rule=dict(model='net', point='block.2', rule='patches'), model=dict(model='net 2', point='block.2', rule='cls'))
    for k,meta in others.items():
        other = meta if k=='point' else store_rows(tmp_path/k, x, store.items, meta=meta)
        for one in (sae,load_sae(tmp_path/'sae')):
            with pytest.raises(BadInput, match=rf'trained on {k} .*allow_other=True'): measure(one, other, judge, **quick)
        asked = measure(sae, other, judge, allow_other=True, **quick)
        assert asked.summary['trained_at']['point']=='block.2' and 'trained on other rows' in card_lines(asked)

def test_an_sae_without_a_record_is_not_refused(world):
    d,store,judge = world
    assert isinstance(measure(make_sae('topk', d_in=16, d_sae=8, k=2), store, judge, **quick), FeatureReport)

def test_sites_from_the_shell(world, tmp_path, monkeypatch):
    d,store,judge = world
    run = lambda line: sh(line.replace('S', str(store.path)).replace('J', str(judge.path)), tmp_path, monkeypatch)
    status,said = run('train S --site block.2 --out sae --d-sae 24 --k 2 --steps 40 --batch-size 64')
    assert status==0, said
    status,said = run('measure sae S J --out report --draws 10')
    assert status==0 and read_json(tmp_path/'report'/'report.json')['point']=='block.2', said   # the SAE's own
    status,said = run('measure sae S J --out other --draws 10 --site block.1')
    assert status==2 and said.count('\n')==1 and '--allow-other' in said and not (tmp_path/'other'/'report.json').exists(), said
    status,said = run('measure sae S J --out other --draws 10 --site block.1 --allow-other')
    assert status==0 and read_json(tmp_path/'other'/'report.json')['point']=='block.1', said

# --- which photographs -----------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def of_photographs(tmp_path_factory):
    "A report of photographs extracted from a folder; another folder with as many under the same names, and one under others"
    from sae_notebooks.acts.sources import image_files
    d = tmp_path_factory.mktemp('photographs')
    images,other = photographs(d/'photos', 24),photographs(d/'others', 24, seed=1)
    items = image_files(images).items
    x = torch.rand(24, 8, generator=torch.Generator().manual_seed(0))
    acts,judge = (store_rows(d/nm, v, items, meta=dict(model=nm, point='p')) for nm,v in (('acts',x),('judge',x[:,:5])))
    report = measure(make_sae('topk', d_in=8, d_sae=12, k=2), acts, judge, **quick)
    report.save(d/'report')
    (d/'renamed').mkdir()
    for i,f in enumerate(sorted((d/'others').iterdir())): (d/'renamed'/f'x{i:03}.png').write_bytes(f.read_bytes())
    return d,report,images

@pytest.mark.parametrize('wrong', ['others','renamed'])
def test_other_photographs_of_the_same_number_are_refused(of_photographs, wrong, monkeypatch):
    d,report,images = of_photographs
    for line in (f'page report {wrong} --out wrong.html',f'name report {wrong} --out wrong'):
        status,said = sh(line, d, monkeypatch)
        assert status==2 and 'not the images that were measured' in said, said
        assert not (d/'wrong.html').exists() and not (d/'wrong'/'report.json').exists()
    from sae_notebooks.viz.browser import FeatureBrowser
    with pytest.raises(BadInput, match='not the images'): FeatureBrowser(load_report(d/'report'), open_images(d/wrong))

def test_the_photographs_that_were_measured_are_taken(of_photographs, monkeypatch):
    d,report,images = of_photographs
    assert sh('page report photos --out right.html', d, monkeypatch)[0]==0
    assert sh('page report others --out asked.html --allow-other', d, monkeypatch)[0]==0

# --- on training rows ------------------------------------------------------------------------------------------------

def test_a_report_says_that_it_is_of_training_rows(world, tmp_path):
    d,store,judge = world
    sae = train(store, 'topk', tmp_path/'sae', **kw)
    report = measure(load_sae(tmp_path/'sae'), store, judge, **quick)
    assert report.summary['rows']=='on training rows' and 'on training rows' in repr(report)
    lines = card_lines(report)
    assert {'mean MS, on training rows','variance explained, on training rows','never on, on training rows'}<=set(lines), lines
    page = report_card(report, tmp_path/'card.html', open_images(d/'photos')).read_text()
    held = json.loads(re.search('id="data">(.*?)</script>', page, re.S)[1])
    assert 'trained on' in held['intro'] and all('On training rows' in caption for caption,_ in held['figures'])

def test_a_share_is_held_out_and_measured(world, tmp_path, monkeypatch):
    d,store,judge = world
    sae = train(store, 'topk', tmp_path/'sae', held_out=.25, **kw)
    report = measure(load_sae(tmp_path/'sae'), store, judge, **quick)
    assert (report.summary['rows'],report.summary['images'])==('held out',60)
    both = measure(sae, store, judge, on='all', **quick)
    assert both.summary['training_share']==.75 and '75 % on training rows' in repr(both)
    known = measure(sae, store, judge, on='training', **quick)
    assert not set(known.item)&set(report.item) and len(known.item)==180
    run = lambda line: sh(line.replace('S', str(store.path)).replace('J', str(judge.path)), tmp_path, monkeypatch)
    status,said = run('train S --out by_default --d-sae 24 --k 2 --steps 40 --batch-size 64')
    assert status==0 and 'on held-out rows' in said, said
    status,said = run('measure by_default S J --out report --draws 10')
    assert status==0 and 'held out' in said and read_json(tmp_path/'report'/'report.json')['images']==48, said

def test_a_group_is_held_out_whole(world, tmp_path):
    d,store,judge = world
    sae = train(store, 'topk', held_out=.25, groups='patient', **kw)
    held = measure(sae, store, judge, **quick).item
    patient = store.items.patient
    assert len(held)==60 and not set(patient[held])&set(patient.drop(index=held))

def test_items_are_known_again_in_another_store(world, tmp_path):
    "By what is in the file, whatever it is called and wherever it lies."
    from sae_notebooks.acts.sources import image_files
    images = photographs(tmp_path/'one', 40)
    (tmp_path/'moved').mkdir()
    for i in range(20,40): (tmp_path/'moved'/f'new {i}.png').write_bytes((images.root/images.items.file[i]).read_bytes())
    meta,x = dict(model='net', point='p', rule='cls'),torch.randn(40,8,generator=torch.Generator().manual_seed(0))
    store = store_rows(tmp_path/'acts', x, image_files(images).items, meta=meta)
    moved = image_files(open_images(tmp_path/'moved')).items
    other = store_rows(tmp_path/'acts2', x[20:], moved, meta=meta)
    judge = store_rows(tmp_path/'judge', x[20:,:3], moved, meta=dict(model='j'))
    few = dict(kw, sae_options=dict(d_sae=8, k=2))
    shares = [measure(train(store.where(rows), 'topk', **few), other, judge, **quick).summary['rows'] for rows in (slice(0,40),slice(0,20),slice(0,25))]
    assert shares==['on training rows','held out','25 % on training rows']

def test_photographs_with_captions_are_known_by_what_is_in_the_file(tmp_path):
    from sae_notebooks.training.origin import item_names
    table = pd.DataFrame(dict(file=['a.png','b.png'], text=['a dog','a dog'], file_key=['0'*16,'1'*16]))
    assert item_names(store_rows(tmp_path/'a', torch.randn(2,4), table))[0]=='content'
    assert item_names(store_rows(tmp_path/'b', torch.randn(2,4), table[['text']]))[0]=='text'

def test_files_are_hashed_only_where_somebody_asks_which_data_they_are(tmp_path, monkeypatch):
    from sae_notebooks.acts import sources
    from sae_notebooks.acts.extract import extract
    photographs(tmp_path/'im', 4)
    monkeypatch.setattr(sources, 'sha256', lambda p: pytest.fail(f'{p} was read whole'))
    source = sources.open_source(tmp_path/'im')
    assert len(source.where([0,2]))==2 and source.items.file_key.ne('').all() and source[0].size==(8,8)
    report = tmp_path/'report'; report.mkdir(); (report/'report.json').write_text('{}')
    with pytest.raises(BadInput, match='holds a feature report'): extract('small_image_text', tmp_path/'im', report, progress=False)
    with pytest.raises(BaseException, match='was read whole'): source.id

def test_an_sae_from_before_the_record_still_works(world, tmp_path):
    d,store,judge = world
    train(store, 'topk', tmp_path/'sae', **kw)
    cfg = read_json(tmp_path/'sae'/'cfg.json')
    cfg['metadata'] = {k:v for k,v in cfg['metadata'].items() if k not in ('items','held_out')}
    old = load_sae(tmp_path/'sae'); old.metadata = cfg['metadata']
    report = measure(old, store.site('block.2'), judge, **quick) # a store of two points: then the first was recorded, whatever was trained on
    assert report.summary['rows']=='not recorded' and card_lines(report)['measured on']=='not recorded' and 'mean MS' in card_lines(report)

# --- judges and luck -------------------------------------------------------------------------------------------------

def test_a_judge_of_the_same_model_is_refused(world, tmp_path):
    d,store,judge = world
    sae = make_sae('topk', d_in=16, d_sae=8, k=2)
    twin = store_rows(tmp_path/'twin', judge[:], store.items, meta=dict(model='a copy', weights='w', point='pooler'))
    own = store_rows(tmp_path/'own', store[:], store.items, meta=dict(model='net', weights='w', point='block.1'))
    for rows,by in ((store,store),(store,store.site('block.2')),(own,twin),(store,dict(a=judge,b=store))):
        with pytest.raises(BadInput, match='allow_same_judge=True'): measure(sae, rows, by, **quick)
    asked = measure(sae, store, store, allow_same_judge=True, **quick)
    assert card_lines(asked)['judge']=='net, the model itself'

def test_the_best_of_many_labels_is_compared_with_luck(world, tmp_path):
    "A class for every image: AUROC is 1 for most features, and that is what luck gives"
    d,store,judge = world
    items = store.items.assign(label=[f'{k}' for k in range(N)])
    acts,seen = (store_rows(tmp_path/nm, s[:], items, meta=dict(model=nm)) for nm,s in (('a',store),('b',judge)))
    sae = train(acts, 'topk', **kw)
    f = measure(sae, acts, seen, **quick).features
    fires = f[f.support>0]
    assert fires.auroc.min()>.9 and (fires.auroc_p>.05).mean()>.85 and fires.auroc_null.min()>.9
    f = measure(sae, acts, seen, labels=np.where(sae.encode(acts[:])[:,0].detach()>0, 'on', 'off'), **quick).features
    assert f.auroc[0]==1 and f.auroc_p[0]==f.corr_p[0]==1/11 and f.auroc_null[0]<.7
    assert {'auroc_null','auroc_p','corr_null','corr_p'}<=set(f)

# --- labels and pixels as they are -----------------------------------------------------------------------------------

def test_labels_csv_without_labels_is_refused(tmp_path, monkeypatch):
    images = photographs(tmp_path/'photos', 8)
    table = pd.DataFrame(dict(file=images.items.file, category=list('aabbccdd')))
    table.to_csv(tmp_path/'photos'/'labels.csv', index=False)
    with pytest.raises(BadInput, match=r"no column 'label'; its columns are: file, category.*--label"): open_images(tmp_path/'photos')
    assert open_images(tmp_path/'photos', label='category').labels==list('aabbccdd')
    with pytest.raises(BadInput, match="no column 'kind'; its columns are: file, category"): open_images(tmp_path/'photos', label='kind')
    run = lambda line: sh(line, tmp_path, monkeypatch)
    status,said = run('extract photos --out no')
    assert status==2 and 'file, category' in said and said.count('\n')==1 and not (tmp_path/'no'/'store.json').exists(), said
    status,said = run('extract photos --out acts --label category')
    assert status==0 and ActStore(tmp_path/'acts').items.label.tolist()==list('aabbccdd'), said

def test_a_file_that_no_row_names_is_said(tmp_path, monkeypatch):
    images = photographs(tmp_path/'photos', 5)
    pd.DataFrame(dict(file=images.items.file[:3], label='x')).to_csv(tmp_path/'photos'/'labels.csv', index=False)
    note = '2 image files have no row in labels.csv: 003.png, 004.png'
    found = open_images(tmp_path/'photos')
    assert len(found)==3 and note in repr(found)
    status,said = sh('extract photos --out acts', tmp_path, monkeypatch)
    assert status==0 and said.splitlines()[0]==note and ActStore(tmp_path/'acts').meta['notes']==[note], said

def test_sixteen_bits_and_floats_are_read_by_their_range(tmp_path, monkeypatch):
    d = tmp_path/'films'; d.mkdir()
    ramp = np.tile(np.linspace(0, 1, 64), (64,1))
    films = {'png16.png':(65535*ramp).astype(np.uint16), 'tiff16.tif':(65535*ramp).astype(np.uint16), 'unit.tif':ramp.astype(np.float32),
             'hounsfield.tif':(3000*ramp-1000).astype(np.float32), 'signed.tif':(3000*ramp-1000).astype(np.int32)}
    for f,a in films.items(): Image.fromarray(a).save(d/f)
    want = (255*ramp).round()
    for f in films:
        im = open_images(d)[sorted(films).index(f)]
        assert im.mode=='RGB' and np.abs(np.asarray(im)[:,:,0]-want).max()<=1, f
    Image.fromarray((4095*ramp).astype(np.uint16)).save(d/'twelve.png')
    twelve = sorted([*films,'twelve.png']).index('twelve.png')
    assert np.abs(np.asarray(open_images(d, white=4095)[twelve])[:,:,0]-want).max()<=1
    status,said = sh('extract films --out acts', tmp_path, monkeypatch)
    read = read_json(tmp_path/'acts'/'store.json')['meta']['read']
    assert status==0 and sum(read.values())==6 and '16 bits from 0 to 65535, none above 4095' in read, said
    assert '1 read as 16 bits from 0 to 65535, none above 4095' in said   # and whoever extracts sees it

def test_transparent_parts_lie_on_white_or_as_asked(tmp_path, monkeypatch):
    d = tmp_path/'logos'; d.mkdir()
    a = np.zeros((8,8,4), np.uint8); a[2:6,2:6] = 200,0,0,255
    logo = Image.fromarray(a)
    logo.save(d/'rgba.png'); logo.convert('LA').save(d/'la.png')
    few = logo.convert('RGB').quantize(4); few.save(d/'p.png', transparency=few.getpixel((0,0)))
    images = open_images(d)
    assert [images[i].getpixel((0,0)) for i in range(3)]==[(255,255,255)]*3
    assert open_images(d, background='#102030')[2].getpixel((0,0))==(16,32,48) and images[2].getpixel((4,4))==(200,0,0)
    status,said = sh('extract logos --out acts --background black', tmp_path, monkeypatch)
    store = ActStore(tmp_path/'acts')
    assert status==0 and store.meta['read']=={'transparent parts on black':3} and store.meta['reading']==dict(background='black'), said
