"A newcomer's way from the README to a page with names: photographs and texts of one's own, from a shell and from Python, on a plain install"
import json, re
import pandas as pd, pytest
from project import root
from sae_notebooks.core.data import open_images
from test_plain_install import python

def commands(lines):
    "Code that calls the command line, a line after the other, and stops at the first that fails"
    return f'''
import shlex
from sae_notebooks.dev.cli import main
for line in {lines!r}:
    try: main(shlex.split(line))
    except SystemExit as e: assert not e.code, (line, e.code)
'''

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A folder as people have it: blanks in its name, other sizes, a table with a column of its own, a file that no row names"
    d = tmp_path_factory.mktemp('newcomer')/'my photos'; d.mkdir()
    own = open_images('photos'); rows = []
    for i in range(0, 400, 8):
        im = own[i]; im = im.resize((im.width-i%7, im.height)); im.save(d/f'DSC {i:04d}.JPG', 'JPEG'); rows.append((f'DSC {i:04d}.JPG', own.labels[i]))
    pd.DataFrame(rows[:-1], columns=['file','species']).to_csv(d/'labels.csv', index=False)
    return d

TEXTS = [f'{who} {did} {where}.' for who in ('Lily','Tom','The dog','A big bird','My mom','The old man')
         for did in ('ran','sat down','lost a toy','saw a red cat','ate an apple','was happy') for where in ('in the park','at home','near the sea','with a friend')]

@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    f = tmp_path_factory.mktemp('newcomer')/'my texts.txt'; f.write_text('\n'.join(TEXTS)+'\n'); return f

def held(page):
    "What a page holds of its features"
    return json.loads(re.search('id="data">(.*?)</script>', page.read_text(encoding='utf-8'), re.S)[1])

def looked_at(d, items, page='run/features.html'):
    "The page is whole, the report behind it says what it is of"
    report = json.loads((d/'run'/'named'/'report.json').read_text()); assert report['items']==items
    assert {'named','tested','abstained','failed'}<=set(report['names']) and report['names']['failed']==0
    assert 'held out' in report['rows'], report['rows']
    table = pd.read_csv(d/'run'/'named'/'report.csv'); assert {'ms','ms_lo','name','status'}<=set(table) and len(table)==32
    text = (d/page).read_text(encoding='utf-8'); assert '<script src' not in text
    shown = held(d/page); assert sorted(map(int,shown['ids']))==sorted(table.feature)
    cards = [shown['cards'][str(r)] for _,group in shown['groups'] for r in group]; assert cards and all(c['items'] for c in cards)
    return report,table

def test_photographs_from_a_shell(photos, tmp_path):
    said = python(commands([f'extract "{photos}" --label species --n-views 2', f'extract "{photos}" --model inat_birds --out run/judge --label species',
        'train run/acts --d-sae 32 --k 4 --steps 60 --batch-size 32 --held-out .3', 'measure run/sae run/acts run/judge --draws 20',
        f'name run/report "{photos}" --words attributes --label species', f'page run/named "{photos}" --label species']), tmp_path)
    report,table = looked_at(tmp_path, 49); assert report['point'] in said and 'no row' in said and 'purity' in table

def test_photographs_from_python(photos, tmp_path):
    "The README's own lines, with models that are embedded and a smaller SAE"
    code = next(b for b in re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S) if "'my_photos'" in b)
    for was,now in ((r"'ViT-B-32/openai'","'small_image_text'"), (r"'facebook/dinov2-base'","'inat_birds'"), (r", point='[^']*', rule='cls'",''),
                    (r'd_sae=\d+, k=\d+','d_sae=32, k=4'), (r'steps=[\d_]+','steps=60, batch_size=32'), (r"'my_photos'",repr(str(photos)))):
        code,n = re.subn(was, now.replace('\\',r'\\'), code); assert n, was
    labelled = re.sub(r"(extract\('[^']*', )('[^']*')", r"\1open_images(\2, label='species')", code).replace(f'open_images({str(photos)!r})', f"open_images({str(photos)!r}, label='species')")
    python(labelled+f'''
from sae_notebooks import report_card
report.save('run/named'); report_card(report, 'run/features.html', open_images({str(photos)!r}, label='species'))
''', tmp_path)
    looked_at(tmp_path, 49)

def test_texts_from_a_shell(texts, tmp_path):
    (tmp_path/'prompts.txt').write_text('Once upon a time\nThe old man\n')
    python(commands([f'extract "{texts}" --model stories260k --rule all', f'extract "{texts}" --out run/judge',
        'train run/acts --d-sae 32 --k 4 --steps 60 --batch-size 64 --held-out .3', 'measure run/sae run/acts run/judge --draws 20',
        f'name run/report "{texts}"', f'page run/named "{texts}"',
        'steer stories260k prompts.txt --report run/named --sae run/sae --feature 3 --control 5 --unit contribution --strengths 1,9 --new 6']), tmp_path)
    report,_ = looked_at(tmp_path, len(TEXTS)); assert report['kind']=='text'
    steered = pd.read_csv(tmp_path/'run'/'steered'/'table.csv'); assert steered.kind.tolist()==['alone','feature','feature','control','control']
    assert (steered.rho[1:]>0).all() and steered.loss.notna().all() and len(pd.read_csv(tmp_path/'run'/'steered'/'texts.csv'))==10

def test_texts_from_python(texts, tmp_path):
    python(f'''
from sae_notebooks import browse, extract, measure, name, open_source, report_card, train
acts   = extract('stories260k', {str(texts)!r}, 'run/acts', rule='all', progress=False)
judge  = extract('small_image_text', {str(texts)!r}, 'run/judge', progress=False)
sae    = train(acts, 'batchtopk', 'run/sae', sae_options=dict(d_sae=32, k=4), steps=60, batch_size=64, held_out=.3, progress=False)
report = name(measure(sae, acts, judge, draws=20, progress=False), open_source({str(texts)!r}))
report.save('run/named'); report_card(report, 'run/features.html', open_source({str(texts)!r}))
browse(report, open_source({str(texts)!r}), decoder=sae.W_dec)
''', tmp_path)
    looked_at(tmp_path, len(TEXTS))
