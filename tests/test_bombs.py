"Small files that ask for much: each is refused in a line, within seconds and before the memory is taken"
import io, json, os, pickle, resource, signal, time, zipfile
from multiprocessing import get_context
import numpy as np, pandas as pd, pytest, torch
from sae_notebooks.acts.combine import store_rows
from sae_notebooks.acts.damage import find_damage
from sae_notebooks.acts.sources import open_source
from sae_notebooks.acts.store import ActStore
from sae_notebooks.core.data import open_image, open_words
from sae_notebooks.core.files import BadInput, NotFound, read_json
from sae_notebooks.core.tensors import load_tensors, tensor_places
from sae_notebooks.metrics.report import load_report
from sae_notebooks.saes.base import make_sae, save_sae
from sae_notebooks.saes.interop import read_sae
from sae_notebooks.training.checkpoint import load_state
from sae_notebooks.viz.browser import FeatureBrowser, read_notes, rows_where

def held(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def _child(use, a, out):
    signal.alarm(20)
    start,before = time.monotonic(),held()
    try: said = f'opened: {use(*a)!r:.100}'
    except (BadInput, NotFound) as e: said = f'refused: {e}'
    except BaseException as e: said = f'{type(e).__name__}: {e}'
    out.send((said, time.monotonic()-start, held()-before))

def refused(use, *a, seconds=5, megabytes=200):
    "What a reader says in a process of its own; it may take neither time nor memory."
    mine,theirs = get_context('fork').Pipe()
    p = get_context('fork').Process(target=_child, args=(use, a, theirs)); p.start(); theirs.close()
    try: said,took,grown = mine.recv()
    except EOFError: p.join(); pytest.fail(f'the process died with {p.exitcode}')
    p.join()
    assert said.startswith('refused') and '\n' not in said and took<seconds and grown<megabytes, f'{said}, {took:.1f} s, {grown:.0f} MB'
    return said

def header(path, h, body=b''):
    raw = json.dumps(h).encode() if isinstance(h,dict) else h
    path.write_bytes(len(raw).to_bytes(8,'little')+raw+body); return path

def an_sae(d, **claims):
    save_sae(make_sae('topk', d_in=8, d_sae=16, k=2), d)
    cfg = json.loads((d/'cfg.json').read_text()); cfg['metadata']['sae_notebooks'].update(claims)
    (d/'cfg.json').write_text(json.dumps(cfg)); return d

@pytest.mark.parametrize('claims', [dict(d_in=200_000, d_sae=10_000), dict(d_in=2**31-1, d_sae=2**31-1), dict(d_sae=10**12), dict(k=10**12)])
def test_settings_that_claim_more_than_the_weights(tmp_path, claims):
    "8 GB and more, from a file of some hundred bytes."
    refused(read_sae, an_sae(tmp_path/'s', **claims))

def test_strides_of_zero(tmp_path):
    wide = torch.zeros(1).expand(2**16,2**13) # 2 GB from 4 bytes
    torch.save({'encoder.weight':wide,'decoder.weight':wide.T,'b_dec':torch.zeros(2**13)}, tmp_path/'ae.pt')
    assert (tmp_path/'ae.pt').stat().st_size<200_000 and 'claim' in refused(read_sae, tmp_path/'ae.pt')

def npy(shape): out = io.BytesIO(); np.lib.format.write_array_header_1_0(out, dict(descr='<f4', fortran_order=False, shape=shape)); return out.getvalue()

def test_zip_that_unpacks(tmp_path):
    "A gigabyte of zeros in five megabytes; and an array that claims 2⁴² numbers it has not."
    with zipfile.ZipFile(tmp_path/'params.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z, z.open('w_enc.npy', 'w') as f:
        f.write(npy((2**28,)))
        for _ in range(64): f.write(bytes(2**24))
    assert (tmp_path/'params.npz').stat().st_size<6e6 and 'unpacks' in refused(read_sae, tmp_path/'params.npz')
    with zipfile.ZipFile(tmp_path/'params.npz', 'w') as z: z.writestr('w_enc.npy', npy((2**42,)))
    assert 'claims' in refused(read_sae, tmp_path/'params.npz')

def test_compressed_pt(tmp_path):
    "What torch stores flat, packed 1000 times."
    buf = io.BytesIO(); torch.save({'encoder.weight':torch.zeros(2**13,2**12)}, buf)
    with zipfile.ZipFile(buf) as old, zipfile.ZipFile(tmp_path/'ae.pt', 'w', zipfile.ZIP_DEFLATED) as new:
        for n in old.namelist(): new.writestr(n, old.read(n))
    assert (tmp_path/'ae.pt').stat().st_size<1e6 and 'unpacks' in refused(read_sae, tmp_path/'ae.pt', megabytes=60)

@pytest.mark.parametrize('use', [tensor_places, load_tensors, load_state])
def test_headers(tmp_path, use):
    "800,000 names; lists within lists; more than there is; longer than the file."
    many = '{'+','.join(f'"{i:07d}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(800_000))+'}'
    assert '100,000 tensors' in refused(use, header(tmp_path/'a', many.encode()))
    refused(use, header(tmp_path/'b', b'{"a":'+b'['*20_000_000))
    refused(use, header(tmp_path/'c', dict(x=dict(dtype='F32', shape=[2**60], data_offsets=[0,2**62]))))
    refused(use, header(tmp_path/'d', b'{"__metadata__":{"meta":['+b'{},'*8_000_000+b'{}]}}'))
    (tmp_path/'e').write_bytes((2**62).to_bytes(8,'little')); refused(use, tmp_path/'e')

def test_json(tmp_path):
    f = tmp_path/'x.json'
    f.write_bytes(b'['*10_000_000); refused(read_json, f)
    f.write_bytes(b'['+b'{},'*8_000_000+b'{}]'); refused(read_json, f)
    f.write_bytes(b' '*(1<<27)); refused(read_json, f)

def test_what_never_ends(tmp_path):
    "A pipe that nobody writes to, and a device, wherever a file is expected."
    d = tmp_path/'s'; s = store_rows(d, torch.randn(20,4)); man = json.loads((d/'store.json').read_text())
    os.mkfifo(tmp_path/'fifo')
    for use in (read_json, tensor_places, load_tensors, open_words, read_notes, open_image, load_state): refused(use, tmp_path/'fifo')
    os.mkfifo(d/'fifo'); man['items'][0]['file'] = 'fifo'; (d/'store.json').write_text(json.dumps(man))
    refused(lambda: ActStore(d).items)
    def damage():
        if bad := find_damage(d): raise BadInput('; '.join(bad))
    refused(damage)
    (d/'store.json').unlink(); (d/'store.json').symlink_to('/dev/zero'); refused(ActStore, d)
    (tmp_path/'list.csv').write_text('file\n/dev/zero\n'+str(tmp_path/'fifo')+'\n')
    refused(lambda: open_source(tmp_path/'list.csv')[0]); refused(lambda: open_source(tmp_path/'list.csv')[1])

def test_manifests(tmp_path):
    d = tmp_path/'s'; store_rows(d, torch.randn(20,4)); man = json.loads((d/'store.json').read_text())
    for rows in (10**12,2**62):
        bad = json.loads(json.dumps(man)); bad['shards'][0]['rows'] = bad['n_rows'] = rows
        (d/'store.json').write_text(json.dumps(bad)); refused(ActStore, d)
        bad = json.loads(json.dumps(man)); bad['items'][0]['rows'] = rows
        (d/'store.json').write_text(json.dumps(bad)); refused(lambda: ActStore(d).items)

@pytest.mark.parametrize('said', ['9**9**9 > ms', 'ms > 9**9**9', "'a'*10**10 == name", "name*1000000000 == 'a'", "'%999999999d' % 1 == name", 'ms > 1<<10**10',
                                  '('*100_000, '-'*100_000+'1', 'ms > '+'9'*100_000, '+'.join(['ms']*50_000)+' > 1'])
def test_conditions(said):
    t = pd.DataFrame(dict(ms=[.1,.2], name=['a','b']))
    refused(rows_where, t, said, seconds=2)

def test_one_bit_of_row_ptr(tmp_path):
    "Codes that say that a row begins outside of them end no process."
    from sae_notebooks.core.codes import dense_to_codes
    from sae_notebooks.metrics.report import FeatureReport
    from safetensors.numpy import load_file, save_file
    on = (torch.arange(40)[:,None]-torch.arange(12))%4==0 # three of 12 in each row: each of the bits puts the second row behind the third
    codes = dense_to_codes(on.float()); t = pd.DataFrame(dict(ms=np.arange(12.), support=3)).rename_axis('feature')
    FeatureReport(t, dict(items=40), np.zeros((12,2),int), np.ones((12,2)), codes=codes, item=np.arange(40)).save(tmp_path/'r')
    record = json.loads((tmp_path/'r/report.json').read_text()); record.pop('files', None); (tmp_path/'r/report.json').write_text(json.dumps(record))
    for bit in (2,14,22,62):
        c = load_file(tmp_path/'r/codes.safetensors'); c['row_ptr'][1] ^= 1<<bit; save_file(c, tmp_path/'r/codes.safetensors')
        refused(lambda: FeatureBrowser(load_report(tmp_path/'r')).together(0))
        c['row_ptr'][1] ^= 1<<bit; save_file(c, tmp_path/'r/codes.safetensors')
    assert len(FeatureBrowser(load_report(tmp_path/'r')).together(0))
