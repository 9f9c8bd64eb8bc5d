"A server on loopback that speaks enough of the OpenAI protocol: it answers from the embedded image-text model, and misbehaves as told."
import base64, hashlib, io, json, socket, threading, time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from PIL import Image

class Server:
    "`mood(key, times)` says how the `times`-th request of this content is treated; `answer(images, text)` what is said."
    def __init__(self, answer, mood=lambda key,times: 'ok', pause=0.):
        self.answer,self.mood,self.pause = answer,mood,pause
        self.asked,self.done,self.lock = Counter(),Counter(),threading.Lock()
        server = self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'
            def log_message(self, *a): pass
            def do_POST(self):
                try: server.handle(self, json.loads(self.rfile.read(int(self.headers['Content-Length']))))
                except (BrokenPipeError, ConnectionResetError): pass
        self.httpd = ThreadingHTTPServer(('127.0.0.1',0), Handler); self.httpd.daemon_threads = True
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    @property
    def url(self): return f'http://127.0.0.1:{self.httpd.server_port}/v1'
    def __enter__(self): return self
    def __exit__(self, *exc): self.httpd.shutdown(); self.httpd.server_close()

    def handle(self, h, body):
        said = body['messages'][-1]['content']
        images = [p['image_url']['url'] for p in said if p['type']=='image_url']
        key = hashlib.sha256(''.join(images).encode()).hexdigest()
        with self.lock: self.asked[key] += 1; mood = self.mood(key, self.asked[key])
        time.sleep(self.pause)
        if mood=='drop': h.connection.shutdown(socket.SHUT_RDWR); h.close_connection = True; return
        if mood=='timeout': time.sleep(3); h.close_connection = True; return
        if mood=='hang': # a beginning, and then nothing
            h.send_response(200); h.send_header('Content-Type','application/json'); h.send_header('Content-Length','1000'); h.end_headers(); h.wfile.write(b'{"id"'); h.wfile.flush(); time.sleep(3); h.close_connection = True; return
        if mood in ('429','500'): return self.send(h, int(mood), {'error':{'message':f'told to say {mood}'}})
        if mood=='schema' and body.get('response_format',{}).get('type')=='json_schema': return self.send(h, 400, {'error':{'message':'response_format json_schema is not supported'}})
        if mood=='garbage': return self.send(h, 200, b'<html>a proxy says hello</html>')
        pics = [Image.open(io.BytesIO(base64.b64decode(u.split(',',1)[1]))) for u in images]
        text = {'prose':'I think they are all very nice.','half':'{"name": "pia','refuse':''}.get(mood) if mood in ('prose','half','refuse') else self.answer(pics, said)
        msg = dict(role='assistant', content=text, refusal='no' if mood=='refuse' else None)
        self.send(h, 200, dict(id='x', object='chat.completion', created=0, model=body['model'], choices=[dict(index=0, finish_reason='stop', message=msg)], usage=dict(prompt_tokens=100+len(pics)*50, completion_tokens=20, total_tokens=120)))
        with self.lock: self.done[key] += 1

    def send(self, h, status, obj):
        raw = obj if isinstance(obj,bytes) else json.dumps(obj).encode()
        h.send_response(status); h.send_header('Content-Type','application/json'); h.send_header('Content-Length',str(len(raw)))
        if status==429: h.send_header('Retry-After','0.1')
        h.end_headers(); h.wfile.write(raw)
