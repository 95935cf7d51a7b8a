-- HMAC of the hash: whoever can write into the store cannot make entries.
ALTER TABLE audit_log ADD COLUMN mac TEXT;

-- Signatures of entries, each of which stands for all before it.
CREATE TABLE audit_seals (
    number BIGINT PRIMARY KEY,
    hash TEXT NOT NULL,
    at TEXT NOT NULL,
    signature TEXT NOT NULL
);

-- The store that the trail began in. A store that was set back is another one, and its trail goes on.
ALTER TABLE control ADD COLUMN trail {uuid};
