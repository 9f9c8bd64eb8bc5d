__version__ = "0.1.0"

# The nouns and verbs by module, loaded when they are first used: importing the package stays quick.
_modules = {
    'core.codes': 'Codes',
    'core.data': 'open_images open_tree open_words verify',
    'core.readers': 'safe_csv',
    'core.synthetic': 'plant',
    'models.ask': 'LocalModel ServerModel',
    'models.hooks': 'capture points replace',
    'models.language': 'load_language',
    'models.llava': 'load_llava',
    'models.load': 'load_model',
    'models.sites': 'sites',
    'models.vision': 'load_vision',
    'saes.base': 'load_sae make_sae SAE save_sae',
    'saes.check': 'check',
    'saes.interop': 'from_pretrained read_sae save_as',
    'saes.match': 'match_l0',
    'geometry.inner_product': 'inner_product InnerProduct',
    'geometry.coherence': 'pair_histogram',
    'geometry.recovery': 'mcc',
    'geometry.pursuit': 'basis_pursuit debias omp',
    'geometry.certificates': 'certify',
    'geometry.stability': 'geometry_report qstar',
    'geometry.loss_metric': 'dimension_weights LossMetric power_metric',
    'acts.combine': 'concat store_rows',
    'acts.damage': 'find_damage',
    'acts.extract': 'extract',
    'acts.share': 'fetch push',
    'acts.sources': 'open_source',
    'acts.store': 'ActStore',
    'acts.stream': 'Shuffled',
    'training.log': 'LivePlot',
    'training.loop': 'evaluate train TrainConfig',
    'training.stack': 'train_many',
    'training.whitened': 'train_whitened',
    'steering.directions': 'Direction',
    'steering.intervene': 'intervene Intervention',
    'steering.steer': 'steer',
    'metrics.fms': 'fms fms_many',
    'metrics.measure': 'measure',
    'metrics.monosemanticity': 'MonosemanticityScore',
    'metrics.paired': 'compare',
    'metrics.places': 'with_places',
    'metrics.promoted': 'with_promoted',
    'metrics.reconstruction': 'Reconstruction',
    'metrics.report': 'FeatureReport load_report',
    'naming.name': 'name',
    'naming.score': 'score_names',
    'naming.vocabulary': 'embed_words name_by_words',
    'viz.browser': 'browse FeatureBrowser',
    'viz.card': 'report_card with_geometry',
    'viz.page': 'write_page',
    'viz.panel': 'steer_panel',
}
_names = {name: module for module,names in _modules.items() for name in names.split()}
__all__ = sorted(_names)

def __getattr__(name):
    if name not in _names: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_names[name]}'), name)

def __dir__(): return sorted({*globals(), *_names})
