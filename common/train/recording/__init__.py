"""What a run shows: `record` run.json and history.csv, `tracking` TensorBoard, MLflow and others.

Pictures of a validation: `panels` of blocks, `whole_slice` of whole crops, `previews` of all of
their sections.
"""
