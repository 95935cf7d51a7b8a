-- The store that a node's revision is of: after a restore, revisions of before mean nothing.
ALTER TABLE nodes ADD COLUMN store {uuid};
-- Documents that are refused beside those in `refused`.
ALTER TABLE nodes ADD COLUMN refused_more BIGINT NOT NULL DEFAULT 0;
CREATE INDEX nodes_heard ON nodes (heard_at);

-- The one node that the token is for; none is all of them.
ALTER TABLE tokens ADD COLUMN node TEXT;
