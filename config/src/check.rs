//! What only shows when several values are seen together.
