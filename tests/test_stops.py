"A run that ends before its time: stopped, killed between two processes, out of disk, or met by another one in its folder"
import json, os, re, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import pytest, torch
from project import root
from sae_notebooks.acts.combine import store_rows
from sae_notebooks.acts.store import ActStore
from sae_notebooks.core.files import BadInput, NotFound

ENV = {**os.environ, **dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TQDM_DISABLE='1')}

# --- sharded training ------------------------------------------------------------------------------------------------

SHARDED = '''
import os,signal,sys,time
import torch
torch.set_num_threads(1)
from sae_notebooks.core.synthetic import plant
from sae_notebooks.training import checkpoint,loop
out,arch,dies = sys.argv[1:4]
rank,times,save = int(os.environ['RANK']),[],loop.save_state
def dying(path, *a):
    times.append(1)
    if dies==f'{rank} {len(times)}': time.sleep(1.5); os.kill(os.getpid(), signal.SIGKILL) # the other has written it by then
    save(path, *a)
loop.save_state = dying
x = plant(32,64).sample(1024, seed=1)[0]
loop.train(x, arch, out, sae_options=dict(d_sae=128,k=4), steps=60, batch_size=128, log_every=10, checkpoint_every=10, lr=1e-3, aux=0.,
           precision='float32', progress=False, shard=True)
torch.distributed.destroy_process_group()
'''

def two(tmp_path, *args):
    "Exit status and what was said, of each of two processes"
    (tmp_path/'s.py').write_text(SHARDED)
    with socket.socket() as s: s.bind(('127.0.0.1',0)); port = s.getsockname()[1]
    env = [{**ENV, **dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))} for r in (0,1)]
    both = [subprocess.Popen([sys.executable,tmp_path/'s.py',*map(str,args)], cwd=root, env=e, text=True, stderr=subprocess.PIPE) for e in env]
    try: said = [p.communicate(timeout=60)[1] for p in both]
    finally: [p.kill() for p in both]
    return [p.returncode for p in both],said

def test_sharded_resumes_from_the_last_common_step(tmp_path, arch='topk', dies='1 3'):
    "One process dies before its checkpoint, when the other has written its own"
    assert two(tmp_path, tmp_path/'whole', arch, '')[0]==[0,0]
    status,_ = two(tmp_path, tmp_path/'cut', arch, dies)
    assert status[int(dies[0])]==-signal.SIGKILL and all(status), status
    assert list((tmp_path/'cut').glob('checkpoint*'))
    status,said = two(tmp_path, tmp_path/'cut', arch, '')
    assert status==[0,0], said
    whole,cut = ({p.name:p.read_bytes() for p in (tmp_path/n).iterdir()} for n in ('whole','cut'))
    assert whole==cut
