-- What is watched.
CREATE TABLE alert_rules (
    id {uuid} PRIMARY KEY,
    name {name} NOT NULL,
    -- JSON: the kind, and what belongs to it.
    condition TEXT NOT NULL,
    severity TEXT NOT NULL,
    -- None: it is for all.
    tenant {name},
    enabled BOOLEAN NOT NULL,
    revision BIGINT NOT NULL,
    created_at {timestamp} NOT NULL
);
CREATE UNIQUE INDEX alert_rules_name ON alert_rules (COALESCE(tenant, ''), name);

-- What was found. Rules may go; what they found stays.
CREATE TABLE alerts (
    id {uuid} PRIMARY KEY,
    rule_id {uuid} NOT NULL,
    rule {name} NOT NULL,
    kind TEXT NOT NULL,
    severity TEXT NOT NULL,
    subject TEXT NOT NULL,
    tenant {name},
    state TEXT NOT NULL,
    summary TEXT NOT NULL,
    opened_at {timestamp} NOT NULL,
    acknowledged_at {timestamp},
    acknowledged_by TEXT,
    resolved_at {timestamp}
);
-- One at a time for each rule and subject.
CREATE UNIQUE INDEX alerts_open ON alerts (rule_id, subject) WHERE resolved_at IS NULL;
CREATE INDEX alerts_tenant ON alerts (tenant, id);

-- How far something has come that goes on where it was.
CREATE TABLE cursors (
    name TEXT PRIMARY KEY,
    number BIGINT NOT NULL
);
