-- Data keys, each wrapped with the key-encryption key, which is not in the store.
CREATE TABLE sealing_keys (
    id {uuid} PRIMARY KEY,
    wrapped TEXT NOT NULL,
    created_at {timestamp} NOT NULL,
    -- Nothing is sealed with it any more; what copies of the store hold still is.
    retired_at {timestamp}
);

-- What the control plane keeps secret for itself, sealed.
CREATE TABLE own_secrets (
    name TEXT PRIMARY KEY,
    secret TEXT NOT NULL
);
