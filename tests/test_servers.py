"Servers that answer as no server should: the question they did it to fails with its reason, soon, in little memory; the others are named"
import gzip, json, threading, time, tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from sae_notebooks.models.ask import ServerModel
from sae_notebooks.naming.language_model import name_by_model, name_template

pytest.importorskip('openai', reason='openai is not installed')
GOOD = '{"name":"a bird","description":"d"}'
def completion(content, **kw): return dict(choices=[dict(message=dict(content=content), finish_reason='stop')], **kw)
def raw(obj): return obj if isinstance(obj,bytes) else json.dumps(obj).encode()

MOODS = dict( # what comes back at once
    deep=b'{"choices":'+b'['*200_000, number=completion(5), parts=completion(['{"name":"x"}']), null=b'null', listed=b'[1]', nothing=b'{}',
    words=dict(choices='none'), surrogate=b'{"choices":[{"message":{"content":"{\\"name\\":\\"a\\\\ud800b\\",\\"description\\":\\"d\\"}"},"finish_reason":"stop"}]}',
    half=b'{"choices":[{"message":{"content":"\\ud83d"},"finish_reason":"stop"}]}', braces=completion('{'*200_000), opened=completion('{"a":['*40_000),
    digits=completion('{"name":"x","description":"y","n":'+'9'*5000+'}x'))

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def head(self, status=200, **more):
        self.close_connection = True
        self.send_response(status)
        for k,v in dict({'Content-Type':'application/json'}, **more).items(): self.send_header(k.replace('_','-'), v)
    def say(self, obj, status=200, **more):
        body = raw(obj); self.head(status, Content_Length=str(len(body)), **more); self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length'])); s = self.server; s.asked += 1
        mood = s.mood if b'SICK' in body else 'good'
        try: getattr(self, mood, lambda: self.say(MOODS[mood]))()
        except (BrokenPipeError, ConnectionResetError): pass
    do_GET = do_POST
    def good(self): self.say(completion(GOOD))
    def usage(self): self.say(completion(GOOD, usage=dict(prompt_tokens='many', completion_tokens=[1])))
    def redirect(self): self.say(b'{}', 307, Location=self.server.elsewhere)
    def trickle(self):
        self.head(Content_Length='100000'); self.end_headers()
        while True: self.wfile.write(b' '); self.wfile.flush(); time.sleep(.1)
    def header(self):
        self.wfile.write(b'HTTP/1.1 200 OK\r\n')
        for i in range(100_000): self.wfile.write(b'X-%d: 1\r\n' % i); self.wfile.flush(); time.sleep(.1)
    def huge(self):
        self.head(); self.end_headers()
        for _ in range(400): self.wfile.write(b' '*2**20)
    def bomb(self): self.say(BOMB, Content_Encoding='gzip')

BOMB = gzip.compress(b' '*10**8)

@pytest.fixture
def serve():
    servers = []
    def start(mood, **kw):
        s = ThreadingHTTPServer(('127.0.0.1',0), Handler); s.daemon_threads = True; s.mood,s.asked = mood,0; vars(s).update(kw)
        threading.Thread(target=s.serve_forever, daemon=True).start(); servers.append(s)
        return s
    yield start
    for s in servers: s.shutdown(); s.server_close()

def names(s, tmp_path, **kw):
    asks = {0:name_template.request(on=['SICK'], off=['b']), 1:name_template.request(on=['well'], off=['b'])}
    kw = dict(dict(timeout=1., total=1.5, retries=0), **kw)
    return name_by_model(asks, ServerModel('m', f'http://127.0.0.1:{s.server_port}/v1', 'secret', **kw), tmp_path, 2, progress=False)

@pytest.mark.parametrize('mood,why', [*((m,'') for m in MOODS), ('redirect','sends on to'), ('trickle','no whole answer within 1.5 s'),
                                      ('header','no whole answer within 1.5 s'), ('huge','longer than'), ('bomb','gzip')])
def test_one_answer_fails(serve, tmp_path, mood, why):
    "In time and in little memory; what was answered is kept, and can be written down."
    other = serve('good'); s = serve(mood, elsewhere=f'http://localhost:{other.server_port}/v1/chat/completions')
    start = time.monotonic(); tracemalloc.start()
    try: t = names(s, tmp_path); peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert t.status.tolist()==['failed','named'] and t.name[1]=='a bird' and t.why[0] and why in t.why[0], t.why[0]
    assert time.monotonic()-start<15 and peak<60e6, peak
    assert not other.asked, 'the question went to another host'
    t.to_csv(tmp_path/'t.csv'); again = names(s, tmp_path); assert again.asked[1]==0

def test_tokens_that_are_no_count(serve, tmp_path):
    t = names(serve('usage'), tmp_path)
    assert t.status.tolist()==['named','named'] and t.tokens.tolist()==[0,0]

def test_an_answer_that_took_too_long_is_not_asked_for_again(serve, tmp_path):
    s = serve('trickle'); start = time.monotonic()
    t = names(s, tmp_path, retries=5)
    assert t.status[0]=='failed' and s.asked==2 and time.monotonic()-start<10

def test_kept_answers_of_another_form_are_asked_for_again(serve, tmp_path):
    "A line that is JSON and no answer, or an answer to another question, is none."
    s = serve('good'); names(s, tmp_path)
    lines = [json.loads(x) for x in (tmp_path/'answers.jsonl').read_text().splitlines()]
    for odd in (dict(data=[]), dict(data=dict(name=5,description='')), dict(data=None), dict(status='perhaps'), dict(data={'fits':[1]}), dict(data=dict(name='\ud800',description=''))):
        (tmp_path/'answers.jsonl').write_text(''.join(json.dumps(x|odd)+'\n' for x in lines)); asked = s.asked
        assert names(s, tmp_path).name.tolist()==['a bird']*2 and s.asked==asked+2, odd
