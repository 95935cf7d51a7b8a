-- Whom to tell what happens.
CREATE TABLE webhooks (
    id {uuid} PRIMARY KEY,
    name {name} NOT NULL,
    url TEXT NOT NULL,
    -- Lists in JSON; none is all.
    kinds TEXT,
    tenants TEXT,
    -- Sealed, as the one before it is, which signs too until `old_until`. Times are milliseconds since 1970.
    secret TEXT NOT NULL,
    old_secret TEXT,
    old_until BIGINT,
    enabled BOOLEAN NOT NULL,
    -- Why it was disabled, if nobody did it.
    disabled_reason TEXT,
    -- Since when nothing was taken.
    failing_since BIGINT,
    revision BIGINT NOT NULL,
    created_at {timestamp} NOT NULL
);

CREATE TABLE webhook_deliveries (
    id {uuid} PRIMARY KEY,
    webhook_id {uuid} NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    -- None: a test.
    event BIGINT,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    next_at BIGINT NOT NULL,
    -- Until when the replica that tries it may take.
    claimed_until BIGINT NOT NULL,
    last_status BIGINT,
    last_error TEXT,
    created_at {timestamp} NOT NULL,
    done_at {timestamp},
    UNIQUE (webhook_id, event)
);
CREATE INDEX webhook_deliveries_next ON webhook_deliveries (state, next_at);
CREATE INDEX webhook_deliveries_created ON webhook_deliveries (created_at);
