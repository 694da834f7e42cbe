"""The routes of a server."""

from __future__ import annotations

import base64
from time import time
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import clip
from clip.serving.access import OPEN
from clip.serving.bodies import ClassifyBody, EmbeddingsBody, SearchBody, documented, read
from clip.serving.gate import RECORD
from clip.serving.metrics import CONTENT_TYPE, Metrics
from clip.serving.refusals import Refusal
from clip.serving.service import Service, unit

HEALTH, READINESS = OPEN
SENTENCES = {
    404: "There is nothing at this path; /openapi.json lists all that there is.",
    405: "This path is asked by another method; /openapi.json says by which.",
}


def application(service: Service, metrics: Metrics) -> FastAPI:
    """The routes, each of which answers from ``service``."""
    # Pages of documentation would load scripts of others.
    app = FastAPI(title="TriCLIP", version=clip.__version__, docs_url=None, redoc_url=None)
    created = int(time())

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> Response:
        return refusal.answer(request.url.path)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        sentence = SENTENCES.get(error.status_code, str(error.detail))
        return Refusal(error.status_code, sentence, headers=dict(error.headers or {})).answer(request.url.path)

    @app.exception_handler(Exception)  # which the gate logs
    async def fail(request: Request, _: Exception) -> Response:
        return Refusal(500, "The server failed; its log says where.").answer(request.url.path)

    @app.post("/v1/embeddings", openapi_extra=documented(EmbeddingsBody))
    async def embeddings(request: Request) -> Response:
        """Embeddings of texts, or of pictures by ``"modality": "image"``, of length 1 unless ``normalize`` is false."""
        body = await read(request, EmbeddingsBody)
        inputs = list(body.input)
        request.scope[RECORD].inputs = len(inputs)
        _require_model(service, body.model)
        width = service.model().model.architecture.embed_dim
        if body.dimensions not in (None, width):
            raise Refusal(400, f"The model gives {width} dimensions, and not {body.dimensions}.", "dimensions")
        tokens = 0
        if body.modality == "image":
            features = await service.embed_pictures(inputs)
        else:
            features, tokens = await service.embed_texts(inputs)
        if body.normalize:
            features = unit(features)
        data = [
            {"object": "embedding", "index": place, "embedding": _encoded(feature, body.encoding_format)}
            for place, feature in enumerate(features)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": service.name, "usage": usage})

    @app.get("/v1/models")
    async def models() -> Response:
        """The model, in a list."""
        return JSONResponse({"object": "list", "data": [_model(service, created)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """The model, if this is its name."""
        _require_model(service, name)
        return JSONResponse(_model(service, created))

    @app.post("/classify", openapi_extra=documented(ClassifyBody, form=True))
    async def classify(request: Request) -> Response:
        """The probability of each label for a picture."""
        body = await read(request, ClassifyBody)
        request.scope[RECORD].inputs = 1 + len(body.labels)
        found = await service.classify(body.image, body.labels, body.template)
        return JSONResponse(
            {
                "model": service.name,
                "probabilities": dict(zip(body.labels, found.probabilities[0].tolist())),
                "logits": dict(zip(body.labels, found.logits[0].tolist())),
            }
        )

    @app.post("/search", openapi_extra=documented(SearchBody, form=True))
    async def search(request: Request) -> Response:
        """What is nearest to a text, a picture or both in the index; scores are cosines."""
        body = await read(request, SearchBody)
        request.scope[RECORD].inputs = (body.text is not None) + (body.image is not None)
        hits = await service.search(body.text, body.image, body.top)
        return JSONResponse({"model": service.name, "results": [{"score": hit.score, **hit.row} for hit in hits]})

    @app.head(HEALTH, include_in_schema=False)
    @app.get(HEALTH)
    async def healthz() -> Response:
        """Whether the server answers."""
        return JSONResponse({"status": "ok"})

    @app.head(READINESS, include_in_schema=False)
    @app.get(READINESS)
    async def readyz() -> Response:
        """Whether the model is loaded; 503 until then."""
        service.model()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics_text() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return app


def _require_model(service: Service, name: str) -> None:
    if name != service.name:
        raise Refusal(
            404, f"The model of this server is {service.name}, and not {name:.100}.", "model", "model_not_found"
        )


def _model(service: Service, created: int) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": created, "owned_by": "triclip"}


def _encoded(feature: np.ndarray, form: str) -> list[float] | str:
    """A feature float32 [d] as numbers, or as base64 of its bytes in little-endian order."""
    if form == "base64":
        return base64.b64encode(feature.astype("<f4").tobytes()).decode()
    numbers: list[float] = feature.tolist()
    return numbers
