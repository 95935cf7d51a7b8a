//! Tables that others write and read as well, with the columns and defaults that they know.

use crate::support::{on_both, tenant};

/// Columns, and what is written into them.
type Given = &'static [(&'static str, &'static str)];

/// A table, the columns that a row must give beside its tenant, and what the others then hold.
const TABLES: [(&str, Given, &str); 4] = [
    (
        "enterprise_scaling_config",
        &[],
        "min_instances = 2 AND max_instances = 100 AND target_cpu_utilization = 70 AND target_memory_utilization = 80 \
         AND scale_up_cooldown = 300 AND scale_down_cooldown = 600 AND custom_metrics = '{}' \
         AND created_at IS NOT NULL AND updated_at IS NOT NULL",
    ),
    (
        "disaster_recovery_config",
        &[("primary_region", "'eu-central'"), ("backup_regions", "'[\"eu-west\"]'")],
        "backup_frequency = 3600 AND retention_days = 30 AND rpo_minutes = 60 AND rto_minutes = 30 \
         AND failover_enabled = true AND last_backup_at IS NULL AND last_test_at IS NULL AND created_at IS NOT NULL",
    ),
    (
        "enterprise_sso_config",
        &[("provider", "'oidc'"), ("provider_config", "'{}'")],
        "role_mapping = '{}' AND auto_provisioning = false AND mfa_required = true AND session_timeout_minutes = 480 \
         AND is_active = true AND created_at IS NOT NULL AND updated_at IS NOT NULL",
    ),
    (
        "epic_integration_status",
        &[],
        "story_4_1_soc2_status = 'pending' AND story_4_2_encryption_status = 'pending' \
         AND story_4_3_monitoring_status = 'pending' AND story_4_4_customization_status = 'pending' \
         AND story_4_5_collaboration_status = 'pending' AND story_4_6_completion_status = 'pending' \
         AND integration_tests_passed = false AND epic_completion_date IS NULL \
         AND created_at IS NOT NULL AND updated_at IS NOT NULL",
    ),
];

on_both! {
    fn columns_have_their_defaults_and_rows_belong_to_one_tenant(database) {
        let admin = database.admin();
        let owner = admin.client();
        owner.post("/tenants", &tenant("acme")).is(201);
        for (table, given, holds) in TABLES {
            let columns: String = given.iter().map(|(column, _)| format!(", {column}")).collect();
            let values: String = given.iter().map(|(_, value)| format!(", {value}")).collect();
            let insert = format!("INSERT INTO {table} (id, tenant_id{columns}) SELECT id, id{values} FROM tenants");
            database.execute(&insert);
            assert_eq!(database.number(&format!("SELECT CAST(COUNT(*) AS BIGINT) AS number FROM {table} WHERE {holds}")), 1, "{table}");
            // There is a constraint to conflict with.
            let once = if table == "enterprise_sso_config" { "tenant_id, provider" } else { "tenant_id" };
            database.execute(&format!("{insert} WHERE true ON CONFLICT ({once}) DO NOTHING"));
            assert_eq!(database.number(&format!("SELECT CAST(COUNT(*) AS BIGINT) AS number FROM {table}")), 1, "{table}");
        }
        owner.delete("/tenants/acme").is(200);
        for (table, ..) in TABLES {
            assert_eq!(database.number(&format!("SELECT CAST(COUNT(*) AS BIGINT) AS number FROM {table}")), 0, "{table}");
        }
    }
}
