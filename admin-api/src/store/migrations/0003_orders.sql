-- The number of the last order, so that they have one order among all replicas.
ALTER TABLE control ADD COLUMN orders BIGINT NOT NULL DEFAULT 0;

-- What nodes were told to do with their caches, as it was said. Kept for nodes that come back.
CREATE TABLE orders (
    number BIGINT PRIMARY KEY,
    id {uuid} NOT NULL UNIQUE,
    tenant {name} NOT NULL,
    -- Whether a node that was away has to hear of it as well.
    lasting BOOLEAN NOT NULL,
    content TEXT NOT NULL,
    at {timestamp} NOT NULL
);
CREATE INDEX orders_at ON orders (at);

-- What nodes answered, the last word of each.
CREATE TABLE order_answers (
    order_id {uuid} NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    node {name} NOT NULL,
    run {uuid} NOT NULL,
    done BOOLEAN NOT NULL,
    content TEXT NOT NULL,
    at {timestamp} NOT NULL,
    PRIMARY KEY (order_id, node)
);
