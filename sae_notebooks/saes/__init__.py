# Python runs this before any module of the layer. Each architecture registers itself when it is imported, and so does what reads
# other libraries' files: name the module of a new one here.
from . import gated, guided, interop, jumprelu, matryoshka, relu, topk
