"""Read fits of any model that `TopicFit.save` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from topicell.config import ModelConfig
from topicell.errors import InputError
from topicell.model.fit import FORMAT, TopicFit
from topicell.model.registry import model_spec


def load_fit(path: str | Path) -> TopicFit:
    """Read a saved fit, which holds no cells.

    Parameters
    ----------
    path
        The folder that was passed to `TopicFit.save`, or the ``model`` folder of a run.

    Raises
    ------
    InputError
        The folder is not a saved model, or has another format.
    """
    import safetensors.torch

    path = Path(path)
    try:
        document = json.loads((path / "model.json").read_text())
        weights = safetensors.torch.load_file(path / "weights.safetensors")
        if document["format"] != FORMAT:
            age = "a later" if document["format"] > FORMAT else "an earlier"
            raise InputError(
                f"a model saved by {age} topicell, in format {document['format']}; this one "
                f"reads format {FORMAT}"
            )
        model = ModelConfig(**document["model"])
        return model_spec(model.kind).restore(
            weights,
            document,
            model=model,
            genes=np.array(document["genes"], dtype=object),
            gene_ids=document.get("gene_ids"),
            gene_frequency_G=np.array(document["gene_frequency"]),
            selection_R=np.array(document["selection"]),
            n_train=document["n_train"],
            history=document["history"],
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (
        *(OSError, ValueError, KeyError, TypeError, RuntimeError),
        safetensors.SafetensorError,
    ) as error:
        found = " ".join(str(error).split())
        raise InputError(
            f"{path} is not a saved model ({type(error).__name__}: {found}); it needs "
            "model.json and weights.safetensors, as written by save"
        ) from error
