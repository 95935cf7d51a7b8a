-- What enterprises set for a tenant, and how far it is. Names, types and defaults are those that others already know; each
-- tenant has one row of a kind.
CREATE TABLE enterprise_scaling_config (
    id {uuid} PRIMARY KEY {new_uuid},
    tenant_id {uuid} NOT NULL UNIQUE REFERENCES tenants (id) ON DELETE CASCADE,
    min_instances INTEGER DEFAULT 2,
    max_instances INTEGER DEFAULT 100,
    -- Per cent.
    target_cpu_utilization INTEGER DEFAULT 70,
    target_memory_utilization INTEGER DEFAULT 80,
    -- Seconds.
    scale_up_cooldown INTEGER DEFAULT 300,
    scale_down_cooldown INTEGER DEFAULT 600,
    custom_metrics {json} DEFAULT '{}',
    created_at {timestamp} DEFAULT CURRENT_TIMESTAMP,
    updated_at {timestamp} DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE disaster_recovery_config (
    id {uuid} PRIMARY KEY {new_uuid},
    tenant_id {uuid} NOT NULL UNIQUE REFERENCES tenants (id) ON DELETE CASCADE,
    primary_region VARCHAR(50) NOT NULL,
    -- A list of names: not every store has arrays.
    backup_regions {json} NOT NULL,
    -- Seconds.
    backup_frequency INTEGER DEFAULT 3600,
    retention_days INTEGER DEFAULT 30,
    rpo_minutes INTEGER DEFAULT 60,
    rto_minutes INTEGER DEFAULT 30,
    failover_enabled BOOLEAN DEFAULT true,
    last_backup_at {timestamp},
    last_test_at {timestamp},
    created_at {timestamp} DEFAULT CURRENT_TIMESTAMP
);

-- A tenant may have several providers, each of them once.
CREATE TABLE enterprise_sso_config (
    id {uuid} PRIMARY KEY {new_uuid},
    tenant_id {uuid} NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    -- `saml`, `oidc`, `ldap`.
    provider VARCHAR(50) NOT NULL,
    provider_config {json} NOT NULL,
    role_mapping {json} DEFAULT '{}',
    auto_provisioning BOOLEAN DEFAULT false,
    mfa_required BOOLEAN DEFAULT true,
    session_timeout_minutes INTEGER DEFAULT 480,
    is_active BOOLEAN DEFAULT true,
    created_at {timestamp} DEFAULT CURRENT_TIMESTAMP,
    updated_at {timestamp} DEFAULT CURRENT_TIMESTAMP,
    UNIQUE (tenant_id, provider)
);

CREATE TABLE epic_integration_status (
    id {uuid} PRIMARY KEY {new_uuid},
    tenant_id {uuid} NOT NULL UNIQUE REFERENCES tenants (id) ON DELETE CASCADE,
    story_4_1_soc2_status VARCHAR(20) DEFAULT 'pending',
    story_4_2_encryption_status VARCHAR(20) DEFAULT 'pending',
    story_4_3_monitoring_status VARCHAR(20) DEFAULT 'pending',
    story_4_4_customization_status VARCHAR(20) DEFAULT 'pending',
    story_4_5_collaboration_status VARCHAR(20) DEFAULT 'pending',
    story_4_6_completion_status VARCHAR(20) DEFAULT 'pending',
    integration_tests_passed BOOLEAN DEFAULT false,
    epic_completion_date {timestamp},
    created_at {timestamp} DEFAULT CURRENT_TIMESTAMP,
    updated_at {timestamp} DEFAULT CURRENT_TIMESTAMP
);
