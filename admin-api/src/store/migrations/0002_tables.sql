-- What follows from documents, for lists, searches and reports. The tenant '' is what stands beside the tenants.
CREATE TABLE services (
    tenant {name} NOT NULL,
    id {name} NOT NULL,
    protocol TEXT NOT NULL,
    balance TEXT NOT NULL,
    -- How it is probed: tcp, http, grpc, or not at all.
    health TEXT,
    tls BOOLEAN NOT NULL,
    PRIMARY KEY (tenant, id)
);

CREATE TABLE endpoints (
    tenant {name} NOT NULL,
    service {name} NOT NULL,
    -- Its place in the document.
    number INTEGER NOT NULL,
    address {name} NOT NULL,
    weight INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    region TEXT,
    zone TEXT,
    PRIMARY KEY (tenant, service, number)
);
CREATE INDEX endpoints_address ON endpoints (address);

CREATE TABLE routes (
    tenant {name} NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    id {name} NOT NULL,
    number INTEGER NOT NULL,
    path {name} NOT NULL,
    -- None is any.
    methods {json} NOT NULL,
    versions {json} NOT NULL,
    upstream {name} NOT NULL,
    canary {name},
    mirror {name},
    priority TEXT NOT NULL,
    -- To the head of the response, where the route itself says so.
    timeout_ms BIGINT,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX routes_upstream ON routes (upstream);
CREATE INDEX routes_path ON routes (path);

CREATE TABLE consumers (
    tenant {name} NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    id {name} NOT NULL,
    scopes {json} NOT NULL,
    roles {json} NOT NULL,
    api_keys INTEGER NOT NULL,
    certificates INTEGER NOT NULL,
    -- Whether it has limits of its own.
    limited BOOLEAN NOT NULL,
    PRIMARY KEY (tenant, id)
);

-- Without their hashes, which nobody has to see in a list.
CREATE TABLE api_keys (
    tenant {name} NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    prefix {name} NOT NULL,
    consumer {name} NOT NULL,
    -- hash: in the document; reference: the document says where the gateways find the key.
    kept TEXT NOT NULL,
    -- NULL: all of the consumer's.
    scopes {json},
    -- When it came into the store.
    created_at {timestamp} NOT NULL,
    -- In whole seconds, as gateways take it.
    expires_at {timestamp},
    PRIMARY KEY (tenant, prefix)
);
CREATE INDEX api_keys_consumer ON api_keys (tenant, consumer);
CREATE INDEX api_keys_expires ON api_keys (expires_at);
