"""Programs as `python -c` runs them, each in a fork of one process that has imported the libraries: a command begins seconds earlier, and is killed, refused and resumed
like any other. What a command imports, and in which order, is tested elsewhere."""
import multiprocessing, os, subprocess, sys, tempfile, threading
from multiprocessing import connection, forkserver
from pathlib import Path
from project import root

forks,one = multiprocessing.get_context('forkserver'),threading.Lock()   # a child's end can be read once
forks.set_forkserver_preload(['warm_commands'])

def _warm(): # the process that forks come from finds what it imports first as this one does
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join([str(root),str(root/'tests'),*filter(None, [before])])
    try: forkserver.ensure_running()
    finally: os.environ.pop('PYTHONPATH') if before is None else os.environ.update(PYTHONPATH=before)

def _main(code, args, said):
    for fd,name in ((1,'out'),(2,'err')): os.dup2(os.open(f'{said}/{name}', os.O_WRONLY|os.O_CREAT|os.O_TRUNC), fd)
    os.chdir(root)
    sys.argv = ['-c',*args]
    exec(compile(code, '<string>', 'exec'), dict(__name__='__main__'))

class Forked:
    "What of `subprocess.Popen` is used here"
    def __init__(self, code, args):
        self.said = tempfile.mkdtemp()
        self.p = forks.Process(target=_main, args=(code,[*map(str,args)],self.said))
        with one: _warm(); self.p.start()
    def poll(self):
        with one: return self.p.exitcode
    def kill(self): self.p.kill()
    def wait(self, limit=300):
        connection.wait([self.p.sentinel], timeout=limit)
        if self.poll() is None: self.kill(); raise subprocess.TimeoutExpired('a command', limit)
        return self.poll()
    def read(self, name): # out or err; nothing where it was killed before it began
        f = Path(self.said)/name
        return f.read_text() if f.exists() else ''

def run(code, args, limit=300):
    "As `subprocess.run` with captured text"
    p = Forked(code, args)
    return subprocess.CompletedProcess(args, p.wait(limit), p.read('out'), p.read('err'))
