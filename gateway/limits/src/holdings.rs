//! All leases of one tenant, or of one caller, and their exchange with the coordinator.
