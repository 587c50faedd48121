"""Floor 3: PostgreSQL through asyncpg, blobs, migrations. Thin typed functions, no decisions."""
