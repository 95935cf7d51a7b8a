-- A replica of an earlier release that still runs writes rows without MACs, which would count as altered for good. Whatever it
-- writes of them has an entry of the audit trail in the same transaction: it finds the column gone, and writes nothing.
ALTER TABLE audit_log RENAME COLUMN request TO request_id;
