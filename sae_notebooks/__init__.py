__version__ = "0.1.0"

# The nouns and verbs, loaded when they are first used: importing the package stays quick.
_names = {
    'ActStore':'acts.store', 'concat':'acts.store', 'store_rows':'acts.store', 'find_damage':'acts.store', 'Shuffled':'acts.stream', 'extract':'acts.extract', 'load_model':'models.load',
    'load_vision':'models.vision', 'load_language':'models.language', 'load_llava':'models.llava', 'open_source':'acts.sources', 'push':'acts.share', 'fetch':'acts.share',
    'open_images':'core.data', 'open_words':'core.data', 'open_tree':'core.data', 'verify':'core.data', 'sites':'models.sites',
    'Codes':'core.codes', 'capture':'models.hooks', 'replace':'models.hooks', 'points':'models.hooks', 'plant':'core.synthetic',
    'SAE':'saes.base', 'make_sae':'saes.base', 'load_sae':'saes.base', 'save_sae':'saes.base', 'check':'saes.check', 'from_pretrained':'saes.interop', 'read_sae':'saes.interop', 'save_as':'saes.interop',
    'LossMetric':'geometry.inner_product', 'power_metric':'geometry.inner_product', 'dimension_weights':'geometry.inner_product', 'mcc':'geometry.recovery',
    'train':'training.loop', 'TrainConfig':'training.loop', 'train_many':'training.sweep', 'evaluate':'training.loop', 'LivePlot':'training.log',
    'MonosemanticityScore':'metrics.monosemanticity', 'Reconstruction':'metrics.reconstruction', 'FeatureReport':'metrics.report', 'measure':'metrics.report', 'compare':'metrics.report', 'fms':'metrics.fms', 'fms_many':'metrics.fms',
    'name':'naming.name', 'name_by_words':'naming.vocabulary', 'embed_words':'naming.vocabulary', 'ServerModel':'models.ask', 'LocalModel':'models.ask', 'score_names':'naming.score', 'browse':'viz.browser', 'FeatureBrowser':'viz.browser',
    'load_report':'metrics.report', 'write_page':'viz.page', 'report_card':'viz.card',
}
__all__ = sorted(_names)

def __getattr__(name):
    if name not in _names: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_names[name]}'), name)

def __dir__(): return sorted({*globals(), *_names})
