"The paper on chest X-rays runs at its own scale when the folders of CheXpert and MedCLIP are named; here toys of that shape"
import nbformat, numpy as np, pandas as pd, pytest, torch
from PIL import Image
from project import root
from sae_notebooks.core.chexpert import chexpert_labels, medsae_labels
from sae_notebooks.core.compat import import_torchvision
from sae_notebooks.dev.run import NotebookError, run_nb
from sae_notebooks.models.pretrained import without_bars

page = root/'nbs/papers/20_medsae.ipynb'

def toy_chexpert(folder, patients=40):
    "Films of 40 pixels, one to three a patient, and the tables as the archive has them: 1, 0, -1 and empty fields."
    rng,rows = np.random.default_rng(0),[]
    for p in range(patients):
        for s in range(rng.integers(1,4)):
            path = f'train/patient{p:05}/study{s+1}/view1_frontal.jpg'
            (folder/path).parent.mkdir(parents=True, exist_ok=True)
            said = rng.choice([1,0,-1,np.nan], len(chexpert_labels), p=[.3,.3,.1,.3])
            shade = 60+40*np.nan_to_num(said[:3]).clip(0).sum()
            Image.fromarray((shade+60*rng.random((40,32))).astype(np.uint8)).save(folder/path)
            about = {'Path':f'CheXpert-v1.0-small/{path}', 'Sex':['Female','Male'][p%2], 'Age':int(rng.integers(20,90)),
                     'Frontal/Lateral':'Frontal', 'AP/PA':['AP','PA'][p%3>0]}
            rows.append(about|dict(zip(chexpert_labels, said)))
    table = pd.DataFrame(rows)
    table[:-4].to_csv(folder/'train.csv', index=False)
    table[-4:].to_csv(folder/'valid.csv', index=False)
    return folder

def toy_medclip(folder, text=True):
    "Random weights under the names of the published checkpoint, of towers as small as their classes allow."
    import_torchvision()
    from safetensors.torch import load_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, SwinConfig, SwinModel
    def part(net, prefix):
        with without_bars(): net.save_pretrained(folder/'net')
        return {prefix+k:v for k,v in load_file(folder/'net'/'model.safetensors').items()}
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    swin = SwinModel(SwinConfig(image_size=32, embed_dim=16, depths=[1,1], num_heads=[1,2], window_size=4))
    state = part(swin, 'vision_model.model.')|{'vision_model.projection_head.weight':torch.randn(12,32)}
    swin.config.save_pretrained(folder/'vision')
    if text:
        bert = BertModel(BertConfig(vocab_size=400, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8))
        state |= part(bert, 'text_model.model.')|{'text_model.projection_head.weight':torch.randn(12,16)}
        known = sorted({w for line in (root/'data/findings.csv').read_text().splitlines() for w in line.split(',')[0].replace('-',' ').split()})
        words = Tokenizer(models.WordLevel({w:i for i,w in enumerate(['[PAD]','[UNK]',*known])}, '[UNK]'))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token='[PAD]', unk_token='[UNK]').save_pretrained(folder/'text')
        bert.config.save_pretrained(folder/'text')
    torch.save(state|{'logit_scale':torch.tensor(2.6)}, folder/'pytorch_model.bin')
    return folder

def toy_judge(folder):
    import_torchvision()
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
    cfg = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    with without_bars(): Dinov2Model(cfg).save_pretrained(folder)
    side = dict(height=28, width=28)
    BitImageProcessor(size=dict(shortest_edge=28), crop_size=side).save_pretrained(folder)
    return folder

def printed(nb): return '\n'.join(o.get('text','') or str(o.get('data',{}).get('text/markdown','')) for c in nb.cells for o in c.get('outputs',[]))

def run(tmp_path, text, **params):
    folders = dict(images=str(toy_chexpert(tmp_path/'chexpert')), model=str(toy_medclip(tmp_path/'medclip', text)), judge=str(toy_judge(tmp_path/'judge')))
    nb = nbformat.read(run_nb(page, tmp_path/'run.ipynb', params=dict(out=str(tmp_path/'out'), **folders, **params), timeout=300), 4)
    stopped = [o for c in nb.cells for o in c.get('outputs',[]) if o.output_type=='error']
    assert not stopped, stopped[0].evalue
    warned = [o.text for c in nb.cells for o in c.get('outputs',[]) if o.get('name')=='stderr']
    assert not warned, warned[0]
    tables = '\n'.join(str(o.data.get('text/plain')) for c in nb.cells for o in c.get('outputs',[]) if 'data' in o)
    assert all(label in tables for label in medsae_labels) and 'Infiltration' not in tables
    return printed(nb)

def test_paper_scale(tmp_path):
    shown = run(tmp_path, False, scale='paper', steps=1, draws=3)
    assert '288 SAEs' in shown                   # 3 architectures, 3 widths, 8 rates, 4 penalties or k
    assert '**By MS**' in shown and 'has no text side' in shown and '**Names** were not given' in shown

def test_with_a_text_side(tmp_path):
    shown = run(tmp_path, True, scale='smoke', steps=2, draws=3)
    assert 'names: by the model itself' in shown and '**Names** tested by' in shown

def test_folders_must_be_named(tmp_path):
    with pytest.raises(NotebookError, match='needs images'): run_nb(page, tmp_path/'run.ipynb', params=dict(scale='paper', out=str(tmp_path/'out')))
