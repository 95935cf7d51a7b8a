-- What has happened, for those who follow it. The oldest go when there are too many.
CREATE TABLE events (
    -- In the order in which they became visible, without gaps.
    number BIGINT PRIMARY KEY,
    at {timestamp} NOT NULL,
    kind TEXT NOT NULL,
    -- A list of names in JSON: whom it concerns. None: no tenant in particular.
    tenants TEXT,
    detail TEXT NOT NULL
);
