-- The logs of usage that nodes have sent, or what there is of them.
CREATE TABLE usage_logs (
    log {name} PRIMARY KEY,
    node {name} NOT NULL,
    region {name} NOT NULL,
    -- Everything up to this record is in the sums, or among the gaps.
    taken BIGINT NOT NULL,
    -- Unix time of the last record that came.
    last_second BIGINT NOT NULL,
    heard_at {timestamp} NOT NULL
);

-- Records that will not come: they were dropped, or taken by somebody else.
CREATE TABLE usage_gaps (
    log {name} NOT NULL,
    first_record BIGINT NOT NULL,
    last_record BIGINT NOT NULL,
    node {name} NOT NULL,
    -- Unix times of the records before and after.
    since_second BIGINT NOT NULL,
    until_second BIGINT NOT NULL,
    PRIMARY KEY (log, first_record)
);
CREATE INDEX usage_gaps_until ON usage_gaps (until_second);

-- What is not known of a request is empty: route, consumer, and the region of the node.
CREATE TABLE usage_sums (
    -- 60, 3600 or 86400 seconds from this Unix time on.
    step BIGINT NOT NULL,
    since BIGINT NOT NULL,
    tenant {name} NOT NULL,
    route {name} NOT NULL,
    consumer {name} NOT NULL,
    region {name} NOT NULL,
    admitted BIGINT NOT NULL,
    refused_limit BIGINT NOT NULL,
    refused_auth BIGINT NOT NULL,
    refused_other BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    given_back BIGINT NOT NULL,
    bytes_in BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    status_1xx BIGINT NOT NULL,
    status_2xx BIGINT NOT NULL,
    status_3xx BIGINT NOT NULL,
    status_4xx BIGINT NOT NULL,
    status_5xx BIGINT NOT NULL,
    -- Admitted requests by what they took, in milliseconds at most.
    ms_1 BIGINT NOT NULL,
    ms_2 BIGINT NOT NULL,
    ms_5 BIGINT NOT NULL,
    ms_10 BIGINT NOT NULL,
    ms_20 BIGINT NOT NULL,
    ms_50 BIGINT NOT NULL,
    ms_100 BIGINT NOT NULL,
    ms_200 BIGINT NOT NULL,
    ms_500 BIGINT NOT NULL,
    ms_1000 BIGINT NOT NULL,
    ms_2000 BIGINT NOT NULL,
    ms_5000 BIGINT NOT NULL,
    ms_more BIGINT NOT NULL,
    PRIMARY KEY (step, tenant, since, route, consumer, region)
);
CREATE INDEX usage_sums_since ON usage_sums (step, since);
