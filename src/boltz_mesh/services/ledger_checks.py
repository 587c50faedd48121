"""Whether the ledger's chain of hashes fits, asked of the database.

The chain of a model is checked before each of its rounds starts, and whenever a caller asks
(`GetPrivacyBudget` with `verify_chain`). A budget that is computed from an altered ledger decides
nothing, so this is the moment at which it matters; a check at the server's start would make every
model wait for the longest ledger, and would say nothing of what happens while the server runs.

The first check of a model in a process reads its whole chain (measured: 12 us of a core a row), and
later ones before a round what was added since. Who asks has the whole chain read.
"""

from __future__ import annotations

import asyncio

from boltz_mesh.privacy.chain import EMPTY, ChainedEvent, ChainHead, verify_chain, verify_end
from boltz_mesh.storage import ledger
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.ids import ModelId


class LedgerChecks:
    """One instance a server; it remembers how far each model's chain was found whole."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._whole: dict[ModelId, ChainHead] = {}

    async def check_new(self, model_id: ModelId) -> ChainHead:
        """Check what was added to a chain since the last time.

        Returns: where it ends. Raises: LedgerBroken.
        """
        return await self._check(model_id, self._whole.get(model_id, EMPTY))

    async def check_all(self, model_id: ModelId) -> ChainHead:
        """Check a chain from its first row on.

        Returns: where it ends. Raises: LedgerBroken.
        """
        return await self._check(model_id, EMPTY)

    async def _check(self, model_id: ModelId, reached: ChainHead) -> ChainHead:
        noted = await self._head(model_id)
        while True:
            reached = await self._follow(model_id, reached)
            if reached.length <= noted.length:
                break
            # Rows and head are written together: whoever sees a row can see its head.
            newer = await self._head(model_id)
            if newer == noted:
                break
            noted = newer
        verify_end(model_id, reached, noted)
        self._whole[model_id] = reached
        return reached

    async def _head(self, model_id: ModelId) -> ChainHead:
        async def body(connection: Connection) -> ChainHead:
            return await ledger.read_head(connection, model_id)

        return await self._database.read("read_ledger_head", body)

    async def _follow(self, model_id: ModelId, reached: ChainHead) -> ChainHead:
        """Check all rows behind `reached`. Returns where they end."""
        after = ledger.BEFORE_ALL if reached == EMPTY else reached.length
        while True:

            async def body(connection: Connection, after: int = after) -> list[ChainedEvent]:
                return await ledger.read_chain(connection, model_id, after=after)

            rows = await self._database.read("read_ledger_chain", body)
            # In a thread: a page takes a tenth of a second.
            reached = await asyncio.to_thread(verify_chain, model_id, rows, after=reached)
            if len(rows) < ledger.CHAIN_PAGE:
                return reached
            after = reached.length
