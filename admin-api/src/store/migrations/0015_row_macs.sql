-- HMAC of what operators write (`rows`): whoever can write into the store cannot make such a row, nor alter one unseen.
ALTER TABLE operators ADD COLUMN mac TEXT;
ALTER TABLE tokens ADD COLUMN mac TEXT;
ALTER TABLE orders ADD COLUMN mac TEXT;
ALTER TABLE alert_rules ADD COLUMN mac TEXT;
ALTER TABLE alerts ADD COLUMN mac TEXT;
ALTER TABLE webhooks ADD COLUMN mac TEXT;
ALTER TABLE siem_sinks ADD COLUMN mac TEXT;
