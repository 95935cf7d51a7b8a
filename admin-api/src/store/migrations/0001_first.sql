-- One row: what every change takes its turn at.
CREATE TABLE control (
    id INTEGER PRIMARY KEY,
    store {uuid} NOT NULL,
    revision BIGINT NOT NULL,
    -- Of all documents, the head among them, as `push::Sum` adds them up.
    sum TEXT NOT NULL,
    head_revision BIGINT NOT NULL,
    head TEXT NOT NULL,
    -- The last entry of the audit trail, so that a cut tail shows.
    audit_number BIGINT NOT NULL,
    audit_hash TEXT NOT NULL
);

CREATE TABLE tenants (
    id {uuid} PRIMARY KEY,
    name {name} NOT NULL UNIQUE,
    revision BIGINT NOT NULL,
    content TEXT NOT NULL,
    created_at {timestamp} NOT NULL,
    updated_at {timestamp} NOT NULL
);
CREATE INDEX tenants_revision ON tenants (revision);

-- Host names are unique over all tenants.
CREATE TABLE hosts (
    pattern {name} PRIMARY KEY,
    tenant_id {uuid} NOT NULL REFERENCES tenants (id) ON DELETE CASCADE
);
CREATE INDEX hosts_tenant ON hosts (tenant_id);

-- NULL is unlimited, or what plan and defaults say. Numbers are wider than INTEGER: quotas go up to 2^50.
CREATE TABLE api_gateway_config (
    id {uuid} PRIMARY KEY {new_uuid},
    tenant_id {uuid} NOT NULL UNIQUE REFERENCES tenants (id) ON DELETE CASCADE,
    rate_limit_rpm BIGINT DEFAULT 1000,
    burst_limit BIGINT DEFAULT 100,
    quota_daily BIGINT DEFAULT 100000,
    quota_monthly BIGINT DEFAULT 1000000,
    custom_headers {json} DEFAULT '{}',
    cors_config {json} DEFAULT '{}',
    caching_enabled BOOLEAN DEFAULT true,
    cache_ttl_seconds BIGINT DEFAULT 300,
    created_at {timestamp} DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE revisions (
    number BIGINT PRIMARY KEY,
    at {timestamp} NOT NULL,
    author TEXT NOT NULL,
    action TEXT NOT NULL,
    reason TEXT,
    -- Documents that it changed.
    changed BIGINT NOT NULL
);

-- What a document was and is. The head has no name.
CREATE TABLE revision_changes (
    revision BIGINT NOT NULL REFERENCES revisions (number),
    tenant {name} NOT NULL,
    before TEXT,
    after TEXT,
    PRIMARY KEY (revision, tenant)
);
CREATE INDEX revision_changes_tenant ON revision_changes (tenant, revision);

CREATE TABLE audit_log (
    number BIGINT PRIMARY KEY,
    -- Text in all columns: what is hashed is what stands there.
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    actor_id TEXT,
    address TEXT,
    action TEXT NOT NULL,
    tenant TEXT,
    outcome TEXT NOT NULL,
    revision BIGINT,
    request TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE INDEX audit_log_tenant ON audit_log (tenant, number);
CREATE INDEX audit_log_actor ON audit_log (actor, number);

CREATE TABLE nodes (
    id {name} PRIMARY KEY,
    run {uuid} NOT NULL,
    version TEXT NOT NULL,
    region TEXT,
    zone TEXT,
    -- The control plane's process that it is connected to; none if it has gone.
    replica {uuid},
    connected_at {timestamp} NOT NULL,
    heard_at {timestamp} NOT NULL,
    revision BIGINT NOT NULL,
    ready BOOLEAN NOT NULL,
    draining BOOLEAN NOT NULL,
    refused TEXT NOT NULL,
    -- When another process with the same id was there that ran as well.
    twin_seen_at {timestamp}
);

CREATE TABLE operators (
    id {uuid} PRIMARY KEY,
    name {name} NOT NULL UNIQUE,
    role TEXT NOT NULL,
    -- A list of names in JSON; none is all tenants.
    tenants TEXT,
    revision BIGINT NOT NULL,
    created_at {timestamp} NOT NULL
);

CREATE TABLE tokens (
    id {uuid} PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    operator_id {uuid} REFERENCES operators (id) ON DELETE CASCADE,
    -- The SHA-256; the token itself is shown once and kept nowhere.
    hash TEXT NOT NULL UNIQUE,
    created_at {timestamp} NOT NULL,
    expires_at {timestamp}
);

CREATE TABLE idempotency_keys (
    operator_id {uuid} NOT NULL,
    key TEXT NOT NULL,
    request TEXT NOT NULL,
    status INTEGER NOT NULL,
    answer TEXT NOT NULL,
    at {timestamp} NOT NULL,
    PRIMARY KEY (operator_id, key)
);
CREATE INDEX idempotency_keys_at ON idempotency_keys (at);
