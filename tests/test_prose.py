"""Sentences about a run follow the run: in tutorials, papers and benchmarks a number in the prose is one that an output or the code of the same
notebook holds, and what a run may change is said by a cell, or of *the stored run* by name."""
import csv, re
import pytest
from project import cells, load, nb_id, narrative, notebooks, root, text

# Numbers that are no result of the page: what a paper claims, what a method or a machine of others has. Each with its reason.
KNOWN = {
    'papers/10_vlm_monosemanticity.ipynb': {'2504.02821':'the number of the paper', '0.37':'a claim of the paper', '0.07':'a claim of the paper',
        '0.01':'a claim of the paper'},
    'papers/12_vlm_steering.ipynb': {'2504.02821':'the number of the paper', '2.4':'MB of an image in LLaVA: arithmetic', '42.4 %':'of the paper',
        '35.8 %':'of the paper', '52.5 %':'of the paper', '33.3 %':'of the paper'},
    'papers/40_atoms.ipynb': {'2509.20784':'the number of the paper', '3.1':'the name of a model'},
    'papers/50_identifiable.ipynb': {'2506.15963':'the number of the paper', '80.2':'a claim of the paper', '76.4':'a claim of the paper',
        '42.2':'a claim of the paper', '40.2':'a claim of the paper'},
    'tutorials/01_first_sae.ipynb': {'95 %':'the level of every interval'},
    'benchmarks/30_metrics.ipynb': {'2.3':'GiB of 50,000 x 12,288 numbers in float32: arithmetic'},
}
each_page = pytest.mark.parametrize('path', notebooks(*narrative), ids=nb_id)

def prose(path):
    "Sentences of the markdown cells, without code, links, formulas, tables of settings and headings"
    for i,_,source in cells(path, 'markdown'):
        plain = re.sub(r'```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)', ' ', source, flags=re.S)
        plain = re.sub(r'^(#|\|).*$', '', plain, flags=re.M)
        for s in re.split(r'(?<=[.!?:;])\s+(?=\W*[A-Z0-9*])', ' '.join(plain.split())): yield i,s

def outputs_and_code(path):
    "All numbers that outputs show and code holds"
    said = []
    for c in load(path)['cells']:
        if c['cell_type']!='code': continue
        said.append(text(c['source']))
        for o in c.get('outputs', []):
            said.append(text(o.get('text','')))
            said += [text(v) for k,v in o.get('data',{}).items() if k.startswith('text/')]
    return [(float(n.replace(',','').replace('_','')),pc) for n,pc in re.findall(r'(?<![\w.])(\d[\d,_]*\.?\d*|\.\d+)(?:e-?\d+)?\s?(%?)', ' '.join(said))
            if n.strip(',_.')]

def holds(numbers, word, percent):
    "Whether some number rounds to this one, as it stands or as a share"
    v = float(word.replace(',',''))
    half = .5*10**-(len(word.partition('.')[2]))+1e-9
    def near(n): return abs(n-v)<=half
    return any(near(n) or (percent and not p and near(100*n)) for n,p in numbers)

def strange(path):
    "Decimals and percentages of the prose that nothing on the page holds"
    numbers,known = outputs_and_code(path),KNOWN.get(nb_id(path),{})
    for i,s in prose(path):
        for m in re.finditer(r'(?<![\w.,/])(\d[\d,]*\.\d+|\d[\d,]*(?=\s?%))(\s?%)?(?![\w/]|\.\d)', s):
            word = m[1]+(' %' if m[2] else '')
            if word not in known and not holds(numbers, m[1], bool(m[2])): yield i,word,s

RATIO = r'''\b(?:two|three|four|five|six|seven|eight|nine|ten|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|\d+)\s+times\b(?!\s+(?:the|as\s+(?:large|much)\s+data))
 |\b(?:half|a\s+(?:third|quarter|fifth|sixth|tenth)|two\s+thirds)\s+of\s+(?:the|them|all|what|it)\b'''

def measured(path):
    "Ratios in words, which no search finds in an output: sentences that do not speak of the stored run"
    for i,s in prose(path):
        if re.search(RATIO, s, re.X|re.I) and 'stored run' not in s: yield i,s

# Ratios in words that no run changes, by a piece of their sentence: what is set, how something is defined, or a bound that a cell asserts.
SET = {
    'benchmarks/10_activations.ipynb': ('The bounds below are far below what is measured', 'In numbers, with room for a busy machine'),
    'papers/10_vlm_monosemanticity.ipynb': ('is what the best of one half of the photographs scores on the other',),
    'papers/12_vlm_steering.ipynb': ('the model must know the word, that is',),
    'tutorials/01_first_sae.ipynb': ('The model saw half of them while it was trained',),
    'tutorials/04_read_and_name_features.ipynb': ('trained on half of the photographs', 'A first version of this page', 'half of which the feature is active on'),
}

def kinds():
    "What the embedded photographs show, as somebody would write it"
    with open(root/'data'/'photos'/'labels.csv', encoding='utf-8') as f: labels = {r['label'] for r in csv.DictReader(f)}
    words = {w for l in labels for w in (l.lower(), l.lower().split(' the ')[0])}
    return re.compile(r'\b('+'|'.join(sorted(map(re.escape, words|{'face','faces'}), key=len, reverse=True))+r')s?\b', re.I)

def seen_in_pictures(path, kind):
    "Sentences after training that say what photographs of features show"
    begun = [i for i,_,s in cells(path) if re.search(r'\btrain(_many)?\(', s)]
    for i,s in prose(path):
        if begun and i>begun[0] and kind.search(s) and 'stored run' not in s: yield i,s

@each_page
def test_numbers_of_the_prose(path):
    bad = [f'{nb_id(path)} cell {i}: {w} in “{s[:110]}”' for i,w,s in strange(path)]
    assert not bad, '\n'.join([*bad, '→ let a cell say it from the values, or list it above with the reason why no run changes it'])

@each_page
def test_ratios_of_the_prose(path):
    allowed = SET.get(nb_id(path), ())
    bad = [f'{nb_id(path)} cell {i}: “{s[:150]}”' for i,s in measured(path) if not any(a in s for a in allowed)]
    assert not bad, '\n'.join([*bad, '→ let a cell say it from the values, or say that it is so in the stored run'])

def test_pictures_of_the_prose():
    "What a feature shows differs from run to run, so prose does not name it: a cell does, from the labels"
    kind = kinds()
    assert kind.search('A row of sunflowers!') and kind.search('Four features show faces')
    bad = [f'{nb_id(p)} cell {i}: “{s[:150]}”' for p in notebooks('tutorials') for i,s in seen_in_pictures(p, kind)]
    assert not bad, '\n'.join([*bad, '→ let a cell say it from the labels, or say that it is so in the stored run'])

def test_exceptions_are_needed():
    "An exception that no sentence needs is taken out"
    idle = [(nb_id(p),w) for p in notebooks(*narrative) for w in KNOWN.get(nb_id(p),{}) if not any(w in s for _,s in prose(p))]
    idle += [(nb_id(p),w) for p in notebooks(*narrative) for w in SET.get(nb_id(p),()) if not any(w in s for _,s in measured(p))]
    assert not idle and {*KNOWN,*SET}<={nb_id(p) for p in notebooks(*narrative)}, idle

def test_strange_numbers_are_seen():
    numbers = [(.402,''),(35.,'%'),(1006.,'')]
    assert holds(numbers,'0.40',False) and holds(numbers,'35',True) and holds(numbers,'40',True)
    assert not holds(numbers,'0.41',False) and not holds(numbers,'36',True)
