"""A run becomes a folder that predicts without torch, and proves that it is the same classifier.

    run --export--> bundle folder --runtime--> predictions, heat maps, audits
                    (model, preprocessing, calibration, proof, checksums)

`format`, `opening`, `runtime` and `scoring` need ONNX Runtime, NumPy, Pillow and pydicom; what makes a bundle
(`export`, `onnx`, `parity`) needs the whole study.
"""
