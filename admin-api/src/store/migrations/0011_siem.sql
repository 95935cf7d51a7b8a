-- Where the audit trail is sent to. The trail itself is what waits.
CREATE TABLE siem_sinks (
    id {uuid} PRIMARY KEY,
    name {name} NOT NULL UNIQUE,
    url TEXT NOT NULL,
    -- Sealed, as the private key is.
    token TEXT,
    -- PEM: whom to believe beside the system's authorities, and what to show.
    ca TEXT,
    certificate TEXT,
    private_key TEXT,
    enabled BOOLEAN NOT NULL,
    -- The last entry that was taken.
    delivered BIGINT NOT NULL,
    failing_since {timestamp},
    last_error TEXT,
    revision BIGINT NOT NULL,
    created_at {timestamp} NOT NULL
);
