-- What is due is looked up webhook by webhook, so that none waits behind what another one does not take.
DROP INDEX webhook_deliveries_next;
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, next_at) WHERE state = 'pending';
