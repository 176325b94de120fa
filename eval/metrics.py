"""What each score means: data for whoever shows, ranks or plots them."""

# `direction` is what the protector wants. A range may be open on one side (None). Scores whose
# `backbone` is true depend on the recognizer and are comparable within one only.
METRICS = {
    "ism": {
        "direction": "lower",
        "range": (-1.0, 1.0),
        "backbone": True,
        "description": "Identity score matching: mean cosine to the person, over detected faces",
    },
    "ism_failures_as_0": {
        "direction": "lower",
        "range": (-1.0, 1.0),
        "backbone": True,
        "description": "ISM over all images, those without a face counting as 0",
    },
    "fdfr": {
        "direction": "higher",
        "range": (0.0, 1.0),
        "backbone": False,
        "description": "Face detection failure rate: share of images without a face",
    },
    "brisque": {
        "direction": "higher",
        "range": (None, None),
        "backbone": False,
        "description": "BRISQUE, LIVE model, full size: nominally 0 (natural) to 100 (broken)",
    },
    "ser_fiq": {
        "direction": "lower",
        "range": (0.0, 1.0),
        "backbone": True,
        "description": "SER-FIQ face quality, scaled for the backbone, over detected faces",
    },
    "ser_fiq_failures_as_0": {
        "direction": "lower",
        "range": (0.0, 1.0),
        "backbone": True,
        "description": "SER-FIQ over all images, those without a face counting as 0",
    },
    "ser_fiq_raw": {
        "direction": "lower",
        "range": (0.0, 1.0),
        "backbone": True,
        "description": "SER-FIQ as its paper defines it, over detected faces",
    },
    "identity_retention": {
        "direction": "lower",
        "range": (None, None),
        "backbone": True,
        "description": "0: the gallery looks like strangers, 1: like the person's unseen photos",
    },
    "linf": {
        "direction": "lower",
        "range": (0.0, 255.0),
        "backbone": False,
        "description": "Largest change of a protected photo in grey levels",
    },
    "psnr": {
        "direction": "higher",
        "range": (0.0, None),
        "backbone": False,
        "description": "Peak signal-to-noise ratio of the protected photos in dB",
    },
    "ssim": {
        "direction": "higher",
        "range": (0.0, 1.0),
        "backbone": False,
        "description": "Structural similarity of protected and clean photos, on luminance",
    },
    "lpips": {
        "direction": "lower",
        "range": (0.0, None),
        "backbone": False,
        "description": "Perceptual distance of protected and clean photos (AlexNet)",
    },
}
