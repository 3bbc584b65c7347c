"""World models: fitted on a run's episodes, and measured on games that were held out."""
