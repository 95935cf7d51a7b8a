-- What was measured of tenants, minute by minute. NULL in `region`: of all regions, or of nodes that have none.
-- NUMERIC(20,4): DECIMAL(10,4) ends at a million.
CREATE TABLE enterprise_performance_metrics (
    id {uuid} PRIMARY KEY {new_uuid},
    tenant_id {uuid} NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    metric_type VARCHAR(100) NOT NULL,
    metric_value NUMERIC(20,4) NOT NULL,
    threshold_value NUMERIC(20,4),
    status VARCHAR(20) DEFAULT 'normal',
    region VARCHAR(50),
    recorded_at {timestamp} DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX idx_tenant_metric_time ON enterprise_performance_metrics (tenant_id, metric_type, recorded_at);
CREATE INDEX enterprise_performance_metrics_recorded_at ON enterprise_performance_metrics (recorded_at);
