"""`internalize serve`: the policy of a recipe, or any kept checkpoint of a run, answers users' own agents."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from internalize.config.schema import Config
from internalize.config.specs import RolloutSpec
from internalize.errors import ConfigError, DataError, UserError
from internalize.experience.inject import Injector
from internalize.experience.pool import ExperiencePool, load_pool
from internalize.experience.redact import Redactor
from internalize.inference.endpoints import Endpoints
from internalize.inference.tool_formats import text_format
from internalize.records import Checkpoint
from internalize.rollout.local import Chats, injector_of
from internalize.runs import names
from internalize.serve.records import Acting
from internalize.serve.server import is_loopback
from internalize.serve.service import Model, Service
from internalize.serve.store import ServeStore

from .recorded import RecordedRun

if TYPE_CHECKING:
    from internalize.training.policy import LocalPolicy

Asked = dict[str, object]  # the body of POST /checkpoint


class Sources(NamedTuple):
    """The weights and experience to serve: a run, or a checkpoint folder and a pool file; neither = the starter."""

    run: RecordedRun | None = None
    checkpoint: Path | None = None
    pool: Path | None = None


class Models:
    """Makes the models of an endpoint. Raises UserError, before it serves, for a model that cannot be loaded."""

    def __init__(self, config: Config, sources: Sources, out: Path) -> None:
        self._config, self._sources, self._out = config, sources, out
        self._policy: LocalPolicy | None = None
        self._endpoints = Endpoints(config)
        if not config.serve.endpoint:
            from internalize.training.policy import LocalPolicy  # noqa: PLC0415 - seconds to import

            self._policy = LocalPolicy.of(config)

    async def load(self, iteration: int | None = None, *, pool: bool = True) -> Model:
        """The model with the weights and experience of an iteration of the run (None = the last that was kept).

        Raises DataError for an iteration without a checkpoint.
        """
        run = self._sources.run
        checkpoint, number = self._checkpoint(iteration)
        shown = self._pool(number) if pool else None
        spec = RolloutSpec(
            config=self._config,
            root=run.path if run else Path(),
            checkpoint=checkpoint,
            env=self._config.env,
            stage="serve",
            iteration=number,
            pool=shown.items if shown else None,
            pool_version=shown.version if shown else None,
            replies=self._out / names.SELECTIONS,
        )
        tool_format, named = text_format(self._config.model.protocol), self._config.serve.endpoint
        if self._policy is None:
            client = self._endpoints.client(named)
            injector = injector_of(spec, self._endpoints)
            return Model(_acting(f"{named}/{client.config.model}", injector), tool_format, injector, relay=client)
        policy: Chats = (loaded := await self._policy.load(checkpoint, spec.root))
        injector = injector_of(spec, policy)
        return Model(_acting(checkpoint.id, injector), tool_format, injector, loaded.agent)

    def _checkpoint(self, iteration: int | None) -> tuple[Checkpoint, int]:
        run, folder = self._sources.run, self._sources.checkpoint
        if self._policy is None:
            return Checkpoint(id="", parent=None, iteration=0, pool_version=None, config_digest="", path=""), 0
        starter = self._policy.starter
        if folder:
            if iteration is not None:
                raise DataError(f"iteration: this endpoint serves the folder {folder}, which is read again")
            found = {"id": self._policy.restore(folder), "path": str(folder.resolve())}
            self._policy.checkpoint = starter.model_copy(update=found)
            return self._policy.checkpoint, 0
        number = (_kept(run) if run else 0) if iteration is None else iteration
        if not number:
            return starter, 0
        checkpoint = run.checkpoint(number) if run else None
        if checkpoint is None:
            where = run.path if run else "this endpoint"
            raise DataError(f"{where}: iteration {number} has no checkpoint")
        return checkpoint, number

    def _pool(self, number: int) -> ExperiencePool | None:
        if self._sources.pool:
            return load_pool(self._sources.pool)
        return self._sources.run.pool(number) if self._sources.run and number else None


def _acting(checkpoint: str, injector: Injector) -> Acting:
    return Acting(checkpoint=checkpoint, pattern=injector.pattern, pool_version=injector.pool_version)


def _kept(run: RecordedRun) -> int:
    """The last iteration whose checkpoint the gate kept; 0 = the starter."""
    kept = [k for k in run.iterations if k and (decision := run.decision(k)) and decision.promote]
    return max(kept, default=0)


def token_of(config: Config) -> str:
    """The callers' token. Raises UserError if it is not set, or if callers in a network would need none."""
    settings = config.serve
    if settings.token_env and not os.environ.get(settings.token_env):
        raise UserError(f"serve.token_env: the environment variable {settings.token_env} is not set")
    if not settings.token_env and not is_loopback(settings.host):
        raise ConfigError(
            f"serve.host = {settings.host!r}: others can reach it, so serve.token_env has to name a token"
        )
    return os.environ[settings.token_env] if settings.token_env else ""


@asynccontextmanager
async def endpoint(
    config: Config, sources: Sources, out: Path, *, pool: bool = True
) -> AsyncIterator[tuple[str, Model]]:
    """The address of the running endpoint, which records in the folder `out`, and its model at the start."""
    from internalize.serve.app import Endpoint  # noqa: PLC0415 - an extra
    from internalize.serve.server import serving  # noqa: PLC0415

    token, settings = token_of(config), config.serve
    store = ServeStore(out)
    try:
        models = Models(config, sources, out)
        service = Service(await models.load(pool=pool), Redactor.of(config.redact), store.keep, settings.remember)

        async def switch(asked: Asked) -> Asked:
            iteration, with_pool = asked.get("iteration", "kept"), asked.get("pool", pool)
            if unknown := asked.keys() - {"iteration", "pool"}:
                raise UserError(f"{min(unknown)}: is no field of a switch (iteration, pool)")
            if not isinstance(with_pool, bool) or not (iteration == "kept" or type(iteration) is int):
                raise UserError('a switch has "iteration" (a number or "kept") and "pool" (true or false)')
            number = iteration if isinstance(iteration, int) else None
            model = await service.switch(lambda: models.load(number, pool=with_pool))
            return model.acting.model_dump()

        app = Endpoint(service, settings, token, store.keep, switch).app()
        async with serving(app, settings.host, settings.port) as address:
            yield address, service.model
    finally:
        store.close()
